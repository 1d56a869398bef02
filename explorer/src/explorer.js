// The explorer: what changed, prompt by prompt. All data is in the page; nothing is fetched, and nothing is stored.
import "img-comparison-slider";
import "photoswipe/style.css";
import "./explorer.css";
import { showCards } from "./cards.js";
import { gainAgainstDiversity, scatter, trainingCharts } from "./charts.js";
import { makeControls } from "./controls.js";
import { makeFilm } from "./film.js";
import { data, element, find } from "./data.js";

const PAGE = 20; // prompts on the screen at once: 40 images of theirs, and few nodes, however many prompts there are
let page = 0;
let drawing = 0;

const controls = makeControls(() => show(0));
function show(wanted) {
  const list = controls.list();
  const last = Math.max(0, Math.ceil(list.length / PAGE) - 1);
  page = Math.min(Math.max(wanted, 0), last);
  const shown = list.slice(page * PAGE, (page + 1) * PAGE);
  const first = list.length ? page * PAGE + 1 : 0;
  find("count").textContent = `${first} to ${page * PAGE + shown.length} of ${list.length} prompts`;
  find("before").disabled = page === 0;
  find("after").disabled = page === last;
  showCards(find("cards"), shown, controls.state());
  clearTimeout(drawing);
  drawing = setTimeout(() => find("scatter").replaceChildren(scatter(list, shown, controls.state(), controls.only)));
}
find("before").onclick = () => show(page - 1);
find("after").onclick = () => {
  show(page + 1);
  find("controls").scrollIntoView();
};

for (const sentence of data.remarks) find("remarks").append(element("li", {}, sentence));
show(0);
// What lies below the images is made after them, each part in a task of its own.
const ready = () => (document.documentElement.dataset.ready = "yes");
for (const part of [makeFilm, trainingCharts, gainAgainstDiversity, ready]) setTimeout(part);

// One card per prompt: a slider between the two roles, the prompt, its scores, and the way to the lightbox.
import PhotoSwipe from "photoswipe";
import { changes, data, effect, element, image, number } from "./data.js";

export function showCards(place, list, state) {
  place.replaceChildren(...list.map((one) => card(one, list, state)));
}

function card(one, list, state) {
  const made = element("article", { className: "card" });
  made.dataset.index = one.index;
  if (image(one, state.left) && image(one, state.right)) {
    const slider = element("img-comparison-slider", { title: "Arrow keys move the line" });
    slider.setAttribute("aria-label", `${state.left} and ${state.right}: ${one.prompt}`);
    for (const [slot, role] of [["first", state.left], ["second", state.right]])
      slider.append(element("img", { slot, onload: sharpen, src: image(one, role), alt: `${role}: ${one.prompt}`, decoding: "async" }));
    const roles = element("p", { className: "roles" }, element("span", {}, state.left), element("span", {}, state.right));
    made.append(slider, roles);
  } else made.append(element("p", { className: "none" }, "No image of this prompt was kept."));
  made.append(element("p", { className: "prompt" }, one.prompt), scores(one, state.left, state.right));
  if (image(one, state.left)) {
    const larger = element("button", { type: "button", className: "enlarge" }, "Enlarge");
    larger.onclick = () => open(one, list, state);
    made.append(larger);
  }
  return made;
}

export function scores(one, from, to) {
  const own = changes(one, from, to);
  const list = element("dl", { className: "scores" });
  for (const [name, value] of Object.entries(one.scores[from] ?? {})) {
    const other = one.scores[to]?.[name];
    const kind = effect(own[name]);
    const arrow = { better: " \u25b2", worse: " \u25bc", same: "" }[kind];
    const text = other === undefined ? `${number(value, name)} \u2192 no value` : `${number(value, name)} \u2192 ${number(other, name)}${arrow}`;
    list.append(element("dt", { className: kind }, name), element("dd", { className: kind }, text));
  }
  return list;
}

// Left and right of a prompt stand beside each other, then those of the next: the arrow keys of the lightbox walk through them.
function open(one, list, state) {
  const slides = list.flatMap((other) => [state.left, state.right].filter((role) => image(other, role)).map((role) => ({ other, role })));
  const side = Math.min(innerWidth, innerHeight) * 0.72;
  const box = new PhotoSwipe({
    dataSource: slides.map(({ other, role }) => ({ src: image(other, role), width: side, height: side, alt: `${role}: ${other.prompt}` })),
    index: slides.findIndex((slide) => slide.other === one),
    showHideAnimationType: "none",
    bgOpacity: 0.94,
    preload: [1, 1],
    paddingFn: (size) => ({ top: 44, bottom: Math.min(230, size.y * 0.3), left: 8, right: 8 }),
  });
  box.on("uiRegister", () => {
    box.element.setAttribute("aria-label", "Images, enlarged");
    box.ui.registerElement({
      name: "caption",
      order: 9,
      isButton: false,
      appendTo: "root",
      onInit: (place) => {
        box.on("change", () => {
          const { other, role } = slides[box.currIndex];
          place.replaceChildren(element("p", {}, element("b", {}, role), ` · ${other.prompt}`), own(other, role), ...file(other, role));
        });
      },
    });
  });
  box.init();
}

function own(one, role) {
  const list = element("dl", { className: "scores" });
  for (const [name, value] of Object.entries(one.scores[role] ?? {})) list.append(element("dt", {}, name), element("dd", {}, number(value, name)));
  return list;
}

function file(one, role) {
  const opens = location.protocol === "file:" || (/^https?:$/.test(location.protocol) && origin !== "null");
  if (!opens || !one.files?.[role]) return []; // in a pane of Kubeflow or MLflow no link opens, and nothing lies beside the page
  return [element("a", { href: `${data.beside}/${one.files[role]}`, target: "_blank", rel: "noopener" }, "The image as it was made")];
}

// An image of few pixels is shown pixel by pixel.
function sharpen() {
  if (this.naturalWidth <= 96) this.className = "crisp";
}

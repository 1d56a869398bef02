// The training as a strip of images: one prompt, the same noise, one frame per sampled step.
import { data, element, find } from "./data.js";

export function makeFilm() {
  const { frames, columns, rows, prompts } = data.film;
  const place = find("film");
  if (!frames.length) return place.append("Training left no samples.");
  const select = element("select", { id: "filmed" });
  prompts.forEach((prompt, k) => select.append(element("option", { value: k, textContent: prompt })));
  const strip = element("div", { className: "strip", tabIndex: 0, role: "group", ariaLabel: "Images by step" });
  const show = () => {
    const [row, column] = [Math.floor(select.value / columns), select.value % columns];
    strip.replaceChildren(
      ...frames.map(({ step, uri }) => {
        const frame = element("div", { className: "frame", role: "img", ariaLabel: `step ${step}: ${prompts[select.value]}` });
        frame.style.backgroundImage = `url(${uri})`;
        frame.style.backgroundSize = `${columns * 100}% ${rows * 100}%`;
        frame.style.backgroundPosition = `${columns > 1 ? (100 * column) / (columns - 1) : 0}% ${rows > 1 ? (100 * row) / (rows - 1) : 0}%`;
        return element("figure", {}, frame, element("figcaption", {}, `step ${step}`));
      }),
    );
  };
  select.oninput = show;
  place.append(element("label", {}, "Prompt ", select), strip);
  show();
}

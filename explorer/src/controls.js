// Which prompts are shown, in which order, and which two roles are held against each other.
import { change, changes, data, element, find } from "./data.js";

const option = (value, text) => element("option", { value, textContent: text });

export function makeControls(changed) {
  const [left, right, source, alarm, order, search] = ["left", "right", "source", "alarm", "order", "search"].map(find);
  for (const role of data.roles) {
    left.append(option(role, role));
    right.append(option(role, role));
  }
  [left.value, right.value] = data.shown;
  source.append(option("", "all"), ...[...new Set(data.cases.map((one) => one.source))].map((s) => option(s, s)));
  const imaged = "with images";
  const some = data.cases.some((one) => one.thumb || one.full);
  const all = data.cases.every((one) => one.thumb || one.full);
  alarm.append(option("", "any prompt"), ...(some && !all ? [option(imaged, imaged)] : []), ...data.marks.map((mark) => option(mark, mark)));
  if (some && !all) alarm.value = imaged; // the page opens with what there is to see
  order.append(option("drawn", "as drawn, not chosen"), option("win", "largest win"), option("loss", "largest loss"));
  for (const { name } of data.rewards) order.append(option(`win:${name}`, `largest win in ${name}`), option(`loss:${name}`, `largest loss in ${name}`));
  order.value = "loss";
  for (const control of [left, right, source, alarm, order, search]) control.addEventListener("input", changed);

  const state = () => ({ left: left.value, right: right.value, reward: order.value.split(":")[1] ?? "" });
  function list() {
    const { left: from, right: to, reward } = state();
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = data.cases.filter(
      (one) =>
        (!source.value || one.source === source.value) &&
        (!alarm.value || one.marks.includes(alarm.value) || (alarm.value === imaged && (one.thumb || one.full))) &&
        words.every((word) => one.prompt.toLowerCase().includes(word)) &&
        (!reward || changes(one, from, to)[reward] !== undefined),
    );
    if (order.value === "drawn") return found;
    const sign = order.value.startsWith("win") ? -1 : 1;
    const value = (one) => change(one, from, to, reward) ?? 0;
    return found.sort((a, b) => sign * (value(a) - value(b)) || a.index - b.index);
  }
  function only(one) {
    source.value = alarm.value = "";
    search.value = one.prompt;
    changed();
    find("controls").scrollIntoView();
  }
  return { list, state, only };
}

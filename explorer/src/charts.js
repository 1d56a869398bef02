// The charts. Each has a sentence that says what it shows, for who cannot see it.
import * as Plot from "@observablehq/plot";
import { change, data, element, find } from "./data.js";

const style = { background: "transparent", fontSize: "12px", overflow: "visible" };
const below = 40; // px below the axis: its numbers, and clear of them its name
const wide = () => Math.max(280, Math.min(1060, document.querySelector("main").clientWidth - 32));
const colours = [0, 1, 2, 3, 4, 5, 6, 7].map((k) => `var(--s${k})`);

// Plot names the groups of its marks; a name asks for a role.
function plot(options) {
  const made = Plot.plot(options);
  for (const group of made.querySelectorAll("g[aria-label]")) group.setAttribute("role", "group");
  return made;
}

export function scatter(list, shown, { left, right, reward }, choose) {
  const name = reward || data.rewards[0].name;
  const points = list
    .filter((one) => one.scores[left]?.[name] !== undefined && one.scores[right]?.[name] !== undefined)
    .map((one) => ({ one, x: one.scores[left][name], y: one.scores[right][name], gain: change(one, left, right, name) ?? 0, near: shown.includes(one) }));
  const ends = points.flatMap((p) => [p.x, p.y]);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const chart = plot({
    style,
    width: Math.min(wide(), 560),
    height: 350,
    marginLeft: 54,
    marginBottom: below,
    ariaLabel: `Scatter of ${name}: ${left} and ${right}`,
    x: { label: `${name}, ${left} \u2192`, nice: true },
    y: { label: `\u2191 ${name}, ${right}`, nice: true, grid: true },
    color: { type: "diverging", scheme: "RdBu", pivot: 0, symmetric: true, label: "gain, base standard deviations", legend: true },
    marks: [
      points.length ? Plot.line([[low, low], [high, high]], { stroke: "currentColor", strokeOpacity: 0.4, strokeDasharray: "3 3" }) : null,
      Plot.dot(points, { x: "x", y: "y", fill: "gain", stroke: "currentColor", strokeOpacity: (p) => (p.near ? 0.9 : 0.25), r: (p) => (p.near ? 6 : 4.5) }),
      Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: (p) => `${p.one.prompt}\n${p.x.toFixed(3)} \u2192 ${p.y.toFixed(3)}`, fill: "var(--card)" })),
    ],
  });
  chart.addEventListener("click", () => chart.value && choose(chart.value.one));
  return chart;
}

// One chart per group of metrics: what stands before the first slash.
export function trainingCharts() {
  const place = find("training");
  for (const { title, said, stacked, zero, series } of data.training) {
    const names = Object.keys(series);
    const rows = names.flatMap((name) => series[name].map((value, k) => ({ step: data.steps[k], name, value })));
    const tip = { x: "step", y: "value", title: (d) => `${d.name}, step ${d.step}: ${d.value?.toFixed(3)}`, fill: "var(--card)" };
    const known = rows.filter((row) => row.value !== null);
    const chart = plot({
      style,
      width: Math.min(wide(), 520),
      height: 230,
      marginLeft: 50,
      marginBottom: below,
      ariaLabel: `${title}: ${names.join(", ")}`,
      x: { label: "optimizer step \u2192", ticks: Math.min(8, data.steps.length), tickFormat: (d) => (Number.isInteger(d) ? `${d}` : "") },
      y: { label: null, grid: true, nice: !stacked },
      color: { domain: names, range: colours, legend: names.length > 1 },
      marks: stacked
        ? [Plot.areaY(rows, { x: "step", y: "value", fill: "name", curve: "step" }), Plot.tip(known, Plot.pointerX(Plot.stackY(tip)))]
        : [zero ? Plot.ruleY([0], { strokeOpacity: 0.3 }) : null, Plot.lineY(rows, { x: "step", y: "value", stroke: "name", marker: data.steps.length < 60 ? "dot" : undefined }), Plot.tip(known, Plot.pointer(tip))],
    });
    place.append(element("figure", { className: "panel" }, element("figcaption", {}, element("b", {}, title), ` ${said}`), chart));
  }
  if (!data.training.length) place.append("Training left no history.");
}

export function gainAgainstDiversity() {
  const points = data.models;
  if (points.length < 2) return find("diversity").append("Diversity was not measured.");
  const once = [...new Map(points.map((p) => [p.name, p])).values()]; // a model may end several lines
  const spot = { x: "change", y: "gain" };
  const chart = plot({
    style,
    width: Math.min(wide(), 640),
    height: 320,
    marginLeft: 54,
    marginRight: 80,
    marginBottom: below,
    ariaLabel: `Gain against diversity: ${once.map((p) => p.name).join(", ")}`,
    x: { label: "change of diversity, % of the base's \u2192", nice: true },
    y: { label: "\u2191 mean gain, base standard deviations", grid: true, nice: true },
    marks: [
      Plot.ruleX([0], { strokeOpacity: 0.3 }),
      Plot.line(points, { ...spot, z: "line", stroke: "currentColor", strokeOpacity: 0.35 }),
      Plot.dot(once, { ...spot, fill: colours[0], r: 5 }),
      Plot.tip(once, Plot.pointer({ ...spot, title: (p) => `${p.name}: ${p.change.toFixed(0)} %, ${p.gain.toFixed(3)}`, fill: "var(--card)" })),
    ],
  });
  find("diversity").append(chart);
  nameSpots(chart, once);
}

// Each point's name beside it, in the first of six places that is over no other name or point, else in that with least of both.
function nameSpots(chart, points) {
  const [x, y] = ["x", "y"].map((axis) => chart.scale(axis).apply);
  const box = (left, top, width, height) => ({ left, top, right: left + width, bottom: top + height });
  const common = (a, b) => Math.max(0, Math.min(a.right, b.right) - Math.max(a.left, b.left)) * Math.max(0, Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
  const taken = points.map((p) => box(x(p.change) - 5, y(p.gain) - 5, 10, 10));
  for (const p of points) {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
    text.textContent = p.name;
    text.setAttribute("fill", "currentColor");
    text.setAttribute("text-anchor", "start");
    chart.append(text);
    const width = text.getComputedTextLength();
    const places = [[9, 4], [-9 - width, 4], [-width / 2, -9], [-width / 2, 18], [9, -7], [9, 16]].map(([dx, dy]) => {
      const [left, base] = [x(p.change) + dx, y(p.gain) + dy];
      const own = box(left, base - 11, width, 14);
      return { left, base, own, cost: taken.reduce((sum, other) => sum + common(own, other), Math.max(0, 54 - left) * 14) };
    });
    const best = places.reduce((a, b) => (b.cost < a.cost ? b : a));
    text.setAttribute("x", best.left);
    text.setAttribute("y", best.base);
    taken.push(best.own);
  }
}

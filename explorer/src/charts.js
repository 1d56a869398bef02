// The charts. Each has a sentence that says what it shows, for who cannot see it.
import * as Plot from "@observablehq/plot";
import { change, data, element, find } from "./data.js";

const style = { background: "transparent", fontSize: "12px", overflow: "visible" };
const wide = () => Math.max(280, Math.min(1060, document.querySelector("main").clientWidth - 32));
const colours = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#6b6b6b", "#c9b800"];

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
    height: 340,
    marginLeft: 54,
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
  for (const { title, said, stacked, series } of data.training) {
    const names = Object.keys(series);
    const rows = names.flatMap((name) => series[name].map((value, k) => ({ step: data.steps[k], name, value })));
    const tip = { x: "step", y: "value", title: (d) => `${d.name}, step ${d.step}: ${d.value?.toFixed(3)}`, fill: "var(--card)" };
    const known = rows.filter((row) => row.value !== null);
    const chart = plot({
      style,
      width: Math.min(wide(), 520),
      height: 220,
      marginLeft: 50,
      ariaLabel: `${title}: ${names.join(", ")}`,
      x: { label: "optimizer step \u2192", ticks: Math.min(8, data.steps.length), tickFormat: (d) => (Number.isInteger(d) ? `${d}` : "") },
      y: { label: null, grid: true, nice: !stacked },
      color: { domain: names, range: colours, legend: names.length > 1 },
      marks: stacked
        ? [Plot.areaY(rows, { x: "step", y: "value", fill: "name", curve: "step" }), Plot.tip(known, Plot.pointerX(Plot.stackY(tip)))]
        : [Plot.ruleY([0], { strokeOpacity: 0.3 }), Plot.lineY(rows, { x: "step", y: "value", stroke: "name", marker: data.steps.length < 60 ? "dot" : undefined }), Plot.tip(known, Plot.pointer(tip))],
    });
    place.append(element("figure", { className: "panel" }, element("figcaption", {}, element("b", {}, title), ` ${said}`), chart));
  }
  if (!data.training.length) place.append("Training left no history.");
}

export function gainAgainstDiversity() {
  const points = data.models;
  if (points.length < 2) return find("diversity").append("Diversity was not measured.");
  find("diversity").append(
    plot({
      style,
      width: Math.min(wide(), 640),
      height: 300,
      marginLeft: 54,
      marginRight: 80,
      ariaLabel: `Gain against diversity: ${points.map((p) => p.name).join(", ")}`,
      x: { label: "change of diversity, % of the base's \u2192", nice: true },
      y: { label: "\u2191 mean gain, base standard deviations", grid: true, nice: true },
      marks: [
        Plot.ruleX([0], { strokeOpacity: 0.3 }),
        Plot.line(points, { x: "change", y: "gain", z: "line", stroke: "currentColor", strokeOpacity: 0.35 }),
        Plot.dot(points, { x: "change", y: "gain", fill: colours[0], r: 5 }),
        Plot.text(points, { x: "change", y: "gain", text: "name", dx: 9, textAnchor: "start", fill: "currentColor" }),
        Plot.tip(points, Plot.pointer({ x: "change", y: "gain", title: (p) => `${p.name}: ${p.change.toFixed(0)} %, ${p.gain.toFixed(3)}`, fill: "var(--card)" })),
      ],
    }),
  );
}

// What Python wrote into the page, and the few helpers that all parts share.
export const data = JSON.parse(document.getElementById("data").textContent);
export const find = (id) => document.getElementById(id);
export const rewards = Object.fromEntries(data.rewards.map((r) => [r.name, r]));

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const number = (value, name) => value.toFixed(rewards[name].digits).replace("-", "\u2212");

// By reward, the change between two roles of a prompt in base standard deviations, of those that both have a value of.
export function changes(one, from, to) {
  const found = {};
  for (const [name, value] of Object.entries(one.scores[from] ?? {})) {
    const other = one.scores[to]?.[name];
    if (other !== undefined && rewards[name]?.std > 0) found[name] = (other - value) / rewards[name].std;
  }
  return found;
}

export function change(one, from, to, reward) {
  const own = changes(one, from, to);
  if (reward) return own[reward];
  const values = Object.values(own);
  return values.length ? values.reduce((a, b) => a + b) / values.length : undefined;
}

export const effect = (value) => (value === undefined || Math.abs(value) <= 0.25 ? "same" : value > 0 ? "better" : "worse");
export const image = (one, role) => one.full?.[role] ?? one.thumb?.[role];

// The blind vote. No image's model is known here; order and sides are drawn anew whenever the page is opened.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const drawn = (n) => Math.floor((n * crypto.getRandomValues(new Uint32Array(1))[0]) / 2 ** 32);
  function shuffled(list) {
    const made = [...list];
    for (let i = made.length - 1; i > 0; i--) {
      const j = drawn(i + 1);
      [made[i], made[j]] = [made[j], made[i]];
    }
    return made;
  }
  const pairs = shuffled(data.pairs.map((pair) => ({ ...pair, images: shuffled(pair.images) })));
  const chosen = []; // an image's id for each pair so far; "" where neither is better
  const show = (id) => {
    for (const other of ["begin", "vote", "end"]) find(other).hidden = other !== id;
    find("vote").inert = false;
  };

  function ask() {
    if (chosen.length === pairs.length) return end();
    show("vote");
    draw();
    find("back").disabled = !chosen.length;
    find("bar").max = pairs.length;
    find("bar").value = chosen.length;
    find("count").textContent = `${chosen.length + 1} of ${pairs.length}`;
  }
  function draw() {
    const pair = pairs[chosen.length];
    find("prompt").textContent = pair.prompt;
    find("pair").replaceChildren(
      ...pair.images.map((image, side) => {
        const button = Object.assign(document.createElement("button"), { type: "button", onclick: () => answer(image.id) });
        const name = side ? "Right" : "Left";
        const shown = Object.assign(new Image(), { src: image.uri, alt: `${name} image: ${pair.prompt}`, onload: sharpen });
        const label = Object.assign(document.createElement("span"), { textContent: side ? "Right →" : "← Left" });
        button.append(shown, label);
        return button;
      }),
    );
  }
  // An image of few pixels is shown pixel by pixel.
  function sharpen() {
    if (this.naturalWidth <= 96) this.className = "crisp";
  }
  function answer(id) {
    if (find("vote").inert) return;
    chosen.push(id);
    ask();
  }
  function back() {
    chosen.pop();
    ask();
  }
  // A pane of Kubeflow or MLflow forbids downloads.
  const framed = location.protocol !== "file:" && !(/^https?:$/.test(location.protocol) && origin !== "null");
  let address = "";
  function end() {
    show("end");
    const votes = chosen.map((id, i) => ({ pair: pairs[i].id, chosen: id }));
    const file = { format: 1, ballot: data.ballot, run: data.run, voter: find("voter").value.trim(), votes };
    const text = JSON.stringify(file, null, 1) + "\n";
    find("thanks").textContent = `Thank you: ${votes.length} of ${pairs.length} pairs are answered.`;
    find("text").value = text;
    find("download").hidden = framed;
    find("copy").textContent = framed ? "Copy this text into a file votes.json." : "If nothing is downloaded here, copy this text into a file of that name:";
    URL.revokeObjectURL(address);
    find("download").href = address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    find("more").hidden = votes.length === pairs.length;
    find(framed ? "text" : "download").focus();
    if (framed) find("text").select();
  }
  find("many").textContent = pairs.length;
  // No form: a frame without allow-forms would drop it.
  find("start").onclick = () => {
    if (find("voter").value.trim()) ask();
    else find("voter").focus();
  };
  find("voter").onkeydown = (event) => {
    if (event.key !== "Enter") return;
    event.stopPropagation();
    find("start").onclick();
  };
  find("neither").onclick = () => answer("");
  find("back").onclick = back;
  find("stop").onclick = end;
  find("more").onclick = ask;
  document.addEventListener("keydown", (event) => {
    if (find("vote").hidden || find("vote").inert || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const images = pairs[chosen.length].images;
    const does = {
      ArrowLeft: () => answer(images[0].id),
      ArrowRight: () => answer(images[1].id),
      ArrowDown: () => answer(""),
      ArrowUp: () => chosen.length && back(),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  });
  // The first pair is seen from the beginning, and answered only once there is a name.
  show("begin");
  draw();
  find("vote").hidden = false;
  find("vote").inert = true;
  find("voter").focus({ preventScroll: true });
  document.documentElement.dataset.ready = "yes";
})();

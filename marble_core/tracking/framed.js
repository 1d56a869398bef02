// In a pane of Kubeflow or MLflow no link opens: the frame's sandbox forbids new windows, and no file lies beside the page.
// There each link becomes its address, to copy.
(() => {
  const links = [...document.querySelectorAll("a[href]")];
  const opens = location.protocol === "file:" || (/^https?:$/.test(location.protocol) && origin !== "null");
  if (opens || !links.length) return;
  for (const link of links) {
    const [place, address] = [document.createElement("span"), document.createElement("code")];
    const href = link.getAttribute("href");
    address.textContent = link.dataset.place || (/^\w+:/.test(href) ? href : `${href}, beside this page's own file`);
    Object.assign(address.style, { userSelect: "all", overflowWrap: "anywhere" });
    if (link.textContent !== address.textContent) place.append(`${link.textContent}: `);
    place.append(address);
    link.replaceWith(place);
  }
  for (const hint of document.querySelectorAll(".framed")) hint.hidden = false;
})();

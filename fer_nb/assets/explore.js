function render({ model, el }) {
  const draw = () => { el.innerHTML = model.get("content"); };
  const onClick = (e) => {
    const target = e.target.closest("[data-go]");
    if (target && el.contains(target)) model.send({ go: target.dataset.go });
  };
  el.classList.add("fer-nb-surface");
  el.addEventListener("click", onClick);
  model.on("change:content", draw);
  draw();
  return () => {
    model.off("change:content", draw);
    el.removeEventListener("click", onClick);
  };
}
export default { render };

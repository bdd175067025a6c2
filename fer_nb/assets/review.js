function render({ model, el }) {
  let root = null, answered = null, frame = 0;
  const free = () => {
    if (model.get("shown") === answered) return false;
    answered = model.get("shown");
    return true;
  };
  const onKey = (e) => {
    if (e.ctrlKey || e.altKey || e.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) return;
    const digit = /^Digit(\d)$/.exec(e.code);  // whatever the keyboard's layout writes on that row
    const key = digit ? digit[1] : e.key.length === 1 ? e.key.toLowerCase() : e.key;
    if (!model.get("commands").includes(key)) return;
    e.preventDefault();
    e.stopPropagation();
    if (!e.repeat && free()) model.send({ key });
  };
  const onClick = (e) => {
    if (e.target.closest("button") && !free()) { e.preventDefault(); e.stopPropagation(); }
  };
  const onChange = () => root.focus();
  const attach = () => {
    root = el.closest(".fer-nb-review");
    if (!root) { frame = requestAnimationFrame(attach); return; }
    root.tabIndex = 0;
    root.dataset.lmSuppressShortcuts = "true";
    root.addEventListener("keydown", onKey, true);
    root.addEventListener("click", onClick, true);
    root.addEventListener("change", onChange);
    root.dataset.ready = "true";
  };
  attach();
  return () => {
    cancelAnimationFrame(frame);
    if (!root) return;
    root.removeEventListener("keydown", onKey, true);
    root.removeEventListener("click", onClick, true);
    root.removeEventListener("change", onChange);
  };
}
export default { render };

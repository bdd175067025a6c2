const ZOOM = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, "0": 0 };
const MOVES = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };
// What decides nothing on the next image may be pressed before that is drawn: it waits.
const WAITS = ["c", "?", "z", "n", "p", "ArrowLeft", "ArrowRight"];

// All large images show the same place, enlarged alike: three variables that the style reads.
function lens(root) {
  const at = { zoom: 1, x: 50, y: 50 };
  const inside = (v) => Math.min(100, Math.max(0, v));
  const set = (zoom, x = at.x, y = at.y) => {
    Object.assign(at, { zoom: Math.min(8, Math.max(1, zoom)), x: inside(x), y: inside(y) });
    root.style.setProperty("--fer-nb-zoom", at.zoom);
    root.style.setProperty("--fer-nb-x", at.x + "%");
    root.style.setProperty("--fer-nb-y", at.y + "%");
    root.dataset.zoom = at.zoom.toFixed(2);
  };
  const place = (e) => {
    const box = e.target.closest(".fer-nb-lens")?.getBoundingClientRect();
    return box && [100 * (e.clientX - box.left) / box.width, 100 * (e.clientY - box.top) / box.height];
  };
  return { at, set, place };
}

function render({ model, el }) {
  let root = null, view = null, answered = null, frame = 0, focused = false;
  const later = [];
  const free = () => {
    if (model.get("shown") === answered) return false;
    answered = model.get("shown");
    root.dataset.ready = "false";
    return true;
  };
  const typing = (e) => /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName);
  const onKey = (e) => {
    if (e.ctrlKey || e.altKey || e.metaKey || typing(e)) return;
    const { at, set } = view;
    const digit = /^Digit(\d)$/.exec(e.code);  // whatever the keyboard's layout writes on that row
    const other = e.shiftKey && !/\d/.test(e.key);  // but not with Shift, where some layouts have + and ?
    const key = digit && !other ? digit[1] : e.key.length === 1 ? e.key.toLowerCase() : e.key;
    const known = model.get("commands").includes(key);
    const move = e.shiftKey && MOVES[key];
    if (!known && !move && !(key in ZOOM)) return;
    e.preventDefault();
    e.stopPropagation();
    if (move) set(at.zoom, at.x + move[0], at.y + move[1]);
    else if (!known) set(at.zoom * ZOOM[key]);
    else if (e.repeat) return;
    else if (free()) model.send({ key });
    else if (WAITS.includes(key)) later.push(key);
  };
  const onShown = () => {
    if (!root) return;
    root.dataset.ready = "true";
    if (later.length && free()) model.send({ key: later.shift() });
  };
  const onDown = () => { focused = root.contains(document.activeElement); };
  const onClick = (e) => {
    if (e.target.closest("button") && !free()) { e.preventDefault(); e.stopPropagation(); }
    const place = view.place(e);
    if (place && focused) view.set(view.at.zoom >= 4 ? 1 : 2 * view.at.zoom, ...place);  // the first click is for the focus
  };
  const onMove = (e) => {
    const place = view.at.zoom > 1 && view.place(e);
    if (place) view.set(view.at.zoom, ...place);
  };
  const onWheel = (e) => {
    const place = e.ctrlKey && view.place(e);  // without Ctrl the page scrolls; a pinch comes as wheel with Ctrl
    if (!place) return;
    e.preventDefault();
    view.set(view.at.zoom * Math.exp(-e.deltaY / 300), ...place);
  };
  const onChange = () => root.focus();
  const whole = () => view?.set(1, 50, 50);
  const heard = [["keydown", onKey, true], ["click", onClick, true], ["pointerdown", onDown, true], ["change", onChange],
    ["pointermove", onMove], ["wheel", onWheel, { passive: false }]];
  const attach = () => {
    root = el.closest(".fer-nb-review");
    if (!root) { frame = requestAnimationFrame(attach); return; }
    view = lens(root);
    whole();
    root.tabIndex = 0;
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "Reviewer; press ? for its keys");
    root.dataset.lmSuppressShortcuts = "true";
    for (const [name, what, how] of heard) root.addEventListener(name, what, how);
    root.dataset.ready = "true";
  };
  attach();
  model.on("change:image", whole);
  model.on("change:shown", onShown);
  return () => {
    cancelAnimationFrame(frame);
    model.off("change:image", whole);
    model.off("change:shown", onShown);
    if (root) for (const [name, what, how] of heard) root.removeEventListener(name, what, how);
  };
}
export default { render };

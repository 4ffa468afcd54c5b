// Decisions of a person, sent to the server, which keeps them before it answers.
const complaint = document.getElementById("complaint");
const say = (text) => {
  complaint.textContent = text;
  complaint.hidden = !text;
};
const send = async (path, body) => {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch {
    throw new Error("The server does not answer: nothing was decided. Start `assay view` again; all earlier decisions are kept.");
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  if ("file" in found) document.getElementById("n-decided").textContent = found.file.toLocaleString("en");
  return found;
};
const told = ([verdict, label]) => (verdict ? (label ? `${verdict} to ${label}` : verdict) : "nothing decided");
const ask = async (path) => {
  let answer;
  try {
    answer = await fetch(path);
  } catch {
    throw new Error("The server does not answer. Start `assay view` again; all decisions are kept.");
  }
  const found = path.includes("/near") ? await answer.text() : await answer.json();
  if (!answer.ok) throw new Error(found.error ?? found);
  return found;
};
// Keys that decide, unless a person writes: a, f, d, s, u, and 1 to 9 for the classes.
const onKeys = (press) =>
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target.closest("input, select, textarea")) return;
    const keys = { a: "[data-verdict=accept]", f: "[data-verdict=fix]:not([data-label])", d: "[data-verdict=drop]", s: "#skip", u: "#undo" };
    const selector = keys[event.key] ?? (/^[1-9]$/.test(event.key) ? `[data-label]:nth-of-type(${event.key})` : null);
    const button = selector && document.querySelector(`.decide ${selector}`);
    if (button && !button.disabled) {
      event.preventDefault();
      press(button);
    }
  });

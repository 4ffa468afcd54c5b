// The review desk: one row at a time.
{
  const { task, flagged } = JSON.parse(document.getElementById("desk-data").textContent);
  const form = document.getElementById("filters");
  const given = new URLSearchParams(location.search);
  if (![...given.keys()].length && flagged) given.set("flagged", "1");
  for (const [name, value] of given) {
    const field = form.elements.namedItem(name);
    if (field) field.type === "checkbox" ? (field.checked = true) : (field.value = value);
  }
  const query = () => {
    const found = new URLSearchParams(new FormData(form));
    for (const [name, value] of [...found]) if (!value) found.delete(name);
    return found;
  };
  const which = [...query()].map(([name, value]) => (name === "flagged" ? "flagged" : `${name.replace("is.", "")} ${value}`));
  document.getElementById("which").textContent = which.join(", ") || "all";
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.search = query().toString() || "words=";
  });
  const row = document.getElementById("row");
  const near = document.getElementById("near");
  const said = document.getElementById("said");
  let now = null; // the row that is shown: id, and what was decided about it
  let busy = false;
  const show = async (id = null) => {
    const asked = query();
    asked.set("decided", "undecided");
    if (id !== null) asked.set("id", id);
    asked.set("part", "1");
    const found = await ask(`/review/next?${asked}`);
    const { total, accept, fix, drop, held } = found.progress;
    const done = accept + fix + drop;
    document.getElementById("progress").textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")} of these rows decided: ${accept} accepted, ${fix} fixed, ${drop} dropped${held ? `; ${held} ${held === 1 ? "is" : "are"} looked at by somebody else` : ""}`;
    const bar = document.getElementById("bar");
    bar.max = Math.max(total, 1);
    bar.value = done;
    now = found.id === null ? null : found;
    for (const button of document.querySelectorAll(".decide [data-verdict], #skip")) button.disabled = now === null;
    if (now === null) {
      row.textContent = !total ? "No row is of this kind; choose others above." : done < total ? "No more rows for you here: others were skipped, or somebody looks at them now. Reload to see them again." : "All of these rows are decided.";
      near.textContent = "";
      return;
    }
    row.innerHTML = now.html; // made by the server, which escapes all texts
    row.focus({ preventScroll: true });
    near.textContent = "…";
    const shown = now.id;
    ask(`/example/${shown}/near?part=1`).then(
      (html) => now?.id === shown && (near.innerHTML = html),
      (error) => now?.id === shown && (near.textContent = error.message),
    );
  };
  const act = async (work) => {
    if (busy) return;
    busy = true;
    say("");
    try {
      await work();
    } catch (error) {
      say(error.message);
    }
    busy = false;
  };
  const decide = (verdict, label = "") =>
    act(async () => {
      const { id, seen } = now;
      const { others } = await send("/decide", { rows: [{ id, verdict, new_label: label, seen }] });
      if (others.length) {
        await show(id);
        say(`Somebody decided about this row meanwhile: ${told(others[0].now)}. That stands; decide again to change it.`);
        return;
      }
      said.textContent = `Kept: ${told([verdict, label])}`;
      await show();
    });
  const press = (button) => {
    if (button.id === "skip") {
      act(async () => {
        await send("/skip", { id: now.id });
        said.textContent = "Skipped";
        await show();
      });
    } else if (button.id === "undo") {
      act(async () => {
        const { made, rows } = await send("/undo", {});
        said.textContent = made ? `Taken back: ${made} ${made === 1 ? "decision" : "decisions"}` : "Nothing to take back";
        await show(rows[0] ?? null);
      });
    } else decide(button.dataset.verdict, button.dataset.label);
  };
  for (const button of document.querySelectorAll(".decide button[data-verdict], #skip, #undo")) button.addEventListener("click", () => press(button));
  document.getElementById("label")?.addEventListener("change", (event) => {
    if (event.target.value) decide("fix", event.target.value);
    event.target.value = "";
    event.target.blur();
  });
  document.getElementById("number")?.addEventListener("submit", (event) => {
    event.preventDefault();
    decide("fix", event.target.elements.label.value.trim());
    event.target.reset();
  });
  onKeys(press);
  act(() => show());
}

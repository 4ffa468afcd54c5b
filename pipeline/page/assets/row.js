// Decisions on the page of a row, and what is alike.
{
  const { id, seen: first } = JSON.parse(document.getElementById("row-data").textContent);
  const said = document.getElementById("said");
  let seen = first;
  const decide = async (verdict, label = "") => {
    say("");
    try {
      const { others } = await send("/decide", { rows: [{ id, verdict, new_label: label, seen }] });
      if (others.length) {
        seen = others[0].now;
        say(`Somebody decided about this row meanwhile: ${told(seen)}. That stands; decide again to change it.`);
      } else location.reload();
    } catch (error) {
      say(error.message);
    }
  };
  const press = async (button) => {
    if (button.id !== "undo") return decide(button.dataset.verdict, button.dataset.label);
    if (seen[0]) return decide("");
    said.textContent = "Nothing to take back here";
  };
  for (const button of document.querySelectorAll(".decide button[data-verdict], #undo")) button.addEventListener("click", () => press(button));
  document.getElementById("label")?.addEventListener("change", (event) => event.target.value && decide("fix", event.target.value));
  document.getElementById("number")?.addEventListener("submit", (event) => {
    event.preventDefault();
    decide("fix", event.target.elements.label.value.trim());
  });
  onKeys(press);
  const near = document.getElementById("near");
  ask(`/example/${near.dataset.id}/near?part=1`).then(
    (html) => (near.innerHTML = html),
    (error) => (near.textContent = error.message),
  );
}

// Ctrl-Enter asks the statement.
const field = document.getElementById("q");
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) field.form.requestSubmit();
});

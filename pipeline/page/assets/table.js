// The table of rows: sorted, searched and paged by DataTables; cells are text, never markup.
{
  const holder = document.getElementById("rows-table");
  const { columns, rows } = JSON.parse(document.getElementById("rows-data").textContent);
  const table = new DATA_TABLE(holder, {
    data: rows,
    columns: columns.map(asColumn),
    deferRender: true,
    autoWidth: false,
    order: [],
    orderClasses: false,
    pageLength: 10,
    lengthMenu: [10, 25, 100],
    layout: LAYOUT,
    language: LANGUAGE,
  });
  const filters = document.getElementById("rows-filters");
  const chosen = new Map(); // column -> value that it must have
  // Of 100,000 rows DataTables's own search takes a second, as it takes every cell for markup.
  const texts = columns.flatMap(({ kind }, column) => (kind === "text" ? [column] : []));
  let lower = [];
  let words = [];
  DATA_TABLE.ext.search.push((_, __, index) => {
    const row = rows[index];
    for (const [column, value] of chosen) if (row[column] !== value) return false;
    return words.every((word) => lower[index].includes(word));
  });
  const field = (label, input) => {
    const box = document.createElement("label");
    if (input.type === "checkbox") box.className = "check";
    box.append(...(input.type === "checkbox" ? [input, label] : [label, input]));
    filters.append(box);
  };
  const search = document.createElement("input");
  search.type = "search";
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      table.draw();
    }, 120);
  });
  field("Search id and text", search);
  columns.forEach(({ title, kind }, column) => {
    if (kind === "class") {
      const names = [...new Set(rows.map((row) => row[column]))].filter((name) => name !== null).sort();
      if (names.length > 200) return;
      const select = document.createElement("select");
      select.append(new Option("all", ""), ...names.map((name, at) => new Option(name, String(at))));
      select.addEventListener("change", () => {
        if (select.value === "") chosen.delete(column);
        else chosen.set(column, names[+select.value]);
        table.draw();
      });
      field(title[0].toUpperCase() + title.slice(1), select);
    }
    if (kind === "flag") {
      const box = document.createElement("input");
      box.type = "checkbox";
      box.addEventListener("change", () => {
        if (box.checked) chosen.set(column, true);
        else chosen.delete(column);
        table.draw();
      });
      field(`${title[0].toUpperCase()}${title.slice(1)} only`, box);
    }
  });
  // The first search of many rows takes half a second: it is made before anybody asks.
  setTimeout(() => {
    lower = rows.map((row) => texts.map((column) => row[column] ?? "").join("\n").toLowerCase());
    table.draw(false);
    filters.hidden = false;
  }, 50);
  document.getElementById("rows-none").remove();
}

// The table of rows: filtered, sorted and paged by the server; rows are chosen to be decided about.
{
  const { columns, has_images } = JSON.parse(document.getElementById("rows-data").textContent);
  const form = document.getElementById("filters");
  const all = document.getElementById("all-found");
  const nChosen = document.getElementById("n-chosen");
  const chosen = new Map(); // id -> what was decided about it when it was chosen
  let found = 0;
  let done = ""; // what the last button did, until rows are chosen or filtered anew
  for (const [name, value] of new URLSearchParams(location.search)) {
    const field = form.elements.namedItem(name);
    if (field) field.type === "checkbox" ? (field.checked = true) : (field.value = value);
  }
  const filter = () => Object.fromEntries([...new FormData(form)].filter(([, value]) => value));
  const seen = (row) => [row.verdict ?? "", row.new_label ?? ""];
  const tell = () => {
    nChosen.textContent = all.checked ? `${found.toLocaleString("en")} rows found` : chosen.size ? `${chosen.size} chosen` : done || "No row chosen";
    for (const button of document.querySelectorAll("#bulk [data-verdict]")) button.disabled = all.checked ? !found : !chosen.size;
    document.getElementById("desk").href = `/review?${new URLSearchParams(filter())}`;
  };
  const link = (row) => {
    const a = document.createElement("a");
    a.href = `/example/${row.id}`;
    a.textContent = row.source_id;
    return a;
  };
  const box = (row) => {
    const input = document.createElement("input");
    input.type = "checkbox";
    input.checked = chosen.has(row.id);
    input.setAttribute("aria-label", `Choose row ${row.source_id}`);
    input.addEventListener("change", () => {
      if (input.checked) chosen.set(row.id, seen(row));
      else chosen.delete(row.id);
      tell();
    });
    return input;
  };
  const picture = (row) => {
    if (!row.picture) return "";
    const image = document.createElement("img");
    image.src = row.picture;
    image.alt = `Image of row ${row.source_id}`;
    return image;
  };
  const decision = (row) => (row.decision ? (row.new_label ? `${row.decision}: ${row.new_label}` : row.decision) : "");
  const table = new DATA_TABLE(document.getElementById("rows-table"), {
    serverSide: true,
    ajax: async (asked, draw) => {
      const { dir, column } = asked.order[0] ?? {};
      const query = new URLSearchParams({ ...filter(), draw: asked.draw, start: asked.start, length: asked.length });
      if (column !== undefined && asked.columns[column].name) {
        query.set("order[0][name]", asked.columns[column].name);
        query.set("order[0][dir]", dir);
      }
      try {
        const answer = await ask(`/rows.json?${query}`);
        say("");
        found = answer.recordsFiltered;
        const total = answer.recordsTotal.toLocaleString("en");
        document.getElementById("n-found").textContent =
          found === answer.recordsTotal ? `${total} rows` : `${found.toLocaleString("en")} of ${total} rows`;
        draw(answer);
      } catch (error) {
        say(error.message);
        found = 0;
        draw({ draw: asked.draw, recordsTotal: 0, recordsFiltered: 0, data: [] });
      }
      tell();
    },
    columns: [
      { title: "<span class='hidden'>choose</span>", data: null, orderable: false, render: (_, __, row) => box(row) },
      { title: "decision", data: null, name: "decision", render: (_, __, row) => asText(decision(row)) },
      ...(has_images ? [{ title: "picture", data: null, orderable: false, render: (_, __, row) => picture(row) }] : []),
      ...columns.map((column) => ({
        ...asColumn(column),
        data: column.name,
        name: column.name,
        ...(column.name === "source_id" ? { className: "id", render: (_, __, row) => link(row) } : {}),
      })),
    ],
    autoWidth: false,
    order: [],
    orderClasses: false,
    pageLength: 25,
    lengthMenu: [25, 50, 100, 200],
    layout: LAYOUT,
    language: { ...LANGUAGE, processing: "" },
  });
  let waiting = 0;
  const changed = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      all.checked = false;
      chosen.clear();
      done = "";
      history.replaceState(null, "", `?${new URLSearchParams(filter())}`);
      table.draw();
    }, 200);
  };
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    changed();
  });
  all.addEventListener("change", tell);
  const act = async (work) => {
    say("");
    try {
      done = await work();
      chosen.clear();
      all.checked = false;
      table.draw(false);
    } catch (error) {
      say(error.message);
    }
  };
  for (const button of document.querySelectorAll("#bulk [data-verdict]")) {
    const { verdict } = button.dataset;
    button.addEventListener("click", () =>
      act(async () => {
        if (all.checked) {
          const { made, kept } = await send("/decide-all", { filter: filter(), verdict });
          return `${made} decided, ${kept} left as they were`;
        }
        const rows = [...chosen].map(([id, before]) => ({ id, verdict, seen: before }));
        const { made, others } = await send("/decide", { rows });
        return `${made} decided${others.length ? `, ${others.length} had been decided by somebody else and stay` : ""}`;
      }),
    );
  }
  document.getElementById("undo").addEventListener("click", () =>
    act(async () => {
      const { made } = await send("/undo", {});
      return made ? `${made} taken back` : "Nothing to take back";
    }),
  );
  tell();
}

// How tables of rows show their cells: as text, never as markup.
const asText = DATA_TABLE.render.text().display;
const asNumber = (value, digits) =>
  value === null || value === undefined ? "" : digits ? String(+value.toPrecision(digits)) : String(value);
const asShown = (kind, digits, value) =>
  kind === "number" ? asNumber(value, digits) : kind === "flag" ? (value ? "⚑ yes" : "") : asText(value ?? "");
const asColumn = ({ title, kind, digits }) => ({
  title: asText(title),
  render: (value, wanted) =>
    wanted === "display" ? asShown(kind, digits, value) : kind === "flag" ? (value ? 1 : 0) : value ?? (kind === "number" ? null : ""),
  type: kind === "number" || kind === "flag" ? "num" : "string",
  searchable: false,
  createdCell: kind === "text" ? (cell) => cell.setAttribute("dir", "auto") : undefined,
});
const LAYOUT = { topStart: null, topEnd: null, bottomStart: ["info", "pageLength"], bottomEnd: "paging" };
const LANGUAGE = { emptyTable: "no row", zeroRecords: "no row matches", info: "_START_ to _END_ of _TOTAL_", infoFiltered: "(of _MAX_)", infoEmpty: "0 of _TOTAL_", lengthMenu: "_MENU_ rows" };

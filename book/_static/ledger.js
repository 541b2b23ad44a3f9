// The ledger: rows that match the words and choices stay, and a click on a column's head sorts by it.
for (const ledger of document.querySelectorAll(".ledger")) {
  const form = ledger.querySelector("form");
  const body = ledger.querySelector("tbody");
  const rows = [...body.rows];
  const text = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  const filter = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const chosen = ["source", "verdict", "chapter"].every((name) => {
        const value = form.elements[name].value;
        return !value || row.dataset[name] === value;
      });
      row.hidden = !(chosen && words.every((word) => text.get(row).includes(word)));
      shown += !row.hidden;
    }
    form.querySelector("output").value = `${shown} of ${rows.length} claims`;
  };

  const sort = (head, column) => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of ledger.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = new Intl.Collator("en", { numeric: true });
    const key = (row) => row.cells[column].textContent;
    body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * order.compare(key(a), key(b))));
  };

  for (const [column, head] of [...ledger.querySelectorAll("th")].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(head, column));
    head.replaceChildren(button);
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
}

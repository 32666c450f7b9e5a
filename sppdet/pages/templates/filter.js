(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const cards = [...document.querySelectorAll("[data-all]")];
  const said = document.getElementById("shown");
  const update = () => {
    const kind = form.elements.kind.value, label = form.elements.label.value;
    let count = 0;
    for (const card of cards) {
      const labels = card.dataset[kind].split(" ").filter(Boolean);
      card.hidden = label ? !labels.includes(label) : kind !== "all" && !labels.length;
      count += !card.hidden;
    }
    said.textContent = `${count} of ${cards.length} images`;
  };
  form.hidden = false;
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
})();

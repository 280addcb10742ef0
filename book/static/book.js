/* Opened from a folder, a page may not read the others, so the search shows titles without excerpts. */
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

/* What scrolls sideways can be reached with the keyboard. */
addEventListener("load", () => {
  for (const part of document.querySelectorAll("main table, main pre")) {
    if (part.scrollWidth > part.clientWidth) {
      part.tabIndex = 0;
    }
  }
});

/* One ε at a time, where the page has several. */
addEventListener("DOMContentLoaded", () => {
  for (const slider of document.querySelectorAll(".epsilon-slider")) {
    const label = slider.querySelector("label");
    const input = slider.querySelector("input");
    const parts = [...slider.querySelectorAll("section")];
    const show = () => {
      parts.forEach((part, place) => { part.hidden = place !== Number(input.value); });
      slider.querySelector("output").textContent = `ε = ${parts[input.value].dataset.epsilon}`;
      input.setAttribute("aria-valuetext", `ε = ${parts[input.value].dataset.epsilon}`);
    };
    input.addEventListener("input", show);
    label.hidden = false;
    show();
  }
});

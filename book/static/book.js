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

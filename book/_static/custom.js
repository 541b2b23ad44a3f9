// Sphinx fetches each hit's page for a summary, which browsers refuse for file:// addresses.
// The search itself works there; only the summaries are left out.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

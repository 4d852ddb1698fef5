() => {
  // What the page does without the server: copying, Esc, the choice of light or dark, and following answers as they grow.
  document.addEventListener("click", (event) => {
    const copy = event.target.closest("[data-copy]");
    if (copy) {
      navigator.clipboard.writeText(copy.closest(".card").querySelector(".text").textContent);
      copy.textContent = "copied";
      setTimeout(() => { copy.textContent = "copy"; }, 1200);
    }
    if (event.target.closest("[data-theme]")) document.body.classList.toggle("dark");
  });
  document.addEventListener("keydown", (event) => {
    const stop = document.querySelector("#stop");
    if (event.key === "Escape" && stop && stop.offsetParent && !stop.disabled) stop.click();
  });
  // the address names the tab, so that a reload comes back to it
  const openTab = () => {
    const tabs = [...document.querySelectorAll("[role=tablist] [role=tab]")];
    if (!tabs.length) return;
    const wanted = tabs.find((tab) => `#${tab.textContent.trim().toLowerCase()}` === location.hash);
    if (wanted && wanted.getAttribute("aria-selected") !== "true") wanted.click();
  };
  document.addEventListener("click", (event) => {
    const tab = event.isTrusted && event.target.closest("[role=tablist] [role=tab]");
    if (tab) history.replaceState(null, "", `#${tab.textContent.trim().toLowerCase()}`);
  });
  window.addEventListener("hashchange", openTab);
  openTab();
  let following = true;
  const atEnd = () => window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 120;
  window.addEventListener("scroll", () => { following = atEnd(); }, {passive: true});
  const watch = () => {
    const parts = ["#live", "#talk"].map((name) => document.querySelector(name));
    if (!parts.every(Boolean)) return setTimeout(watch, 200);
    const follow = new MutationObserver(() => {
      if (following) window.scrollTo(0, document.documentElement.scrollHeight);
    });
    for (const part of parts) follow.observe(part, {childList: true, subtree: true, characterData: true});
  };
  watch();
}

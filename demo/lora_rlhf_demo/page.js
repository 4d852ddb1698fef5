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
  // the address names the tab, so that a reload comes back to it; on a phone the last tabs are in a menu
  const TABS = "[role=tablist] [role=tab], .overflow-dropdown button";
  const openTab = () => {
    const tabs = [...document.querySelectorAll(TABS)];
    if (!tabs.length) return;
    const wanted = tabs.find((tab) => `#${tab.textContent.trim().toLowerCase()}` === location.hash);
    if (wanted && wanted.getAttribute("aria-selected") !== "true") wanted.click();
  };
  document.addEventListener("click", (event) => {
    const tab = event.isTrusted && event.target.closest(TABS);
    if (tab) history.replaceState(null, "", `#${tab.textContent.trim().toLowerCase()}`);
  });
  window.addEventListener("hashchange", openTab);
  openTab();
  // The page goes along with answers as they grow, unless somebody has scrolled up. On a phone the settings stand below.
  let following = true;
  const below = () => (document.querySelector("#main")?.getBoundingClientRect().bottom ?? 0) - window.innerHeight;
  window.addEventListener("scroll", () => { if (Math.abs(below()) < 120) following = true; }, {passive: true});
  for (const name of ["wheel", "touchmove"]) { // growing text scrolls too, so only a hand ends it
    window.addEventListener(name, () => setTimeout(() => { following = Math.abs(below()) < 120; }, 100), {passive: true});
  }
  const watch = () => {
    const parts = ["#live", "#talk"].map((name) => document.querySelector(name));
    if (!parts.every(Boolean)) return setTimeout(watch, 200);
    const follow = new MutationObserver(() => {
      const main = document.querySelector("#main");
      if (following && main.offsetParent && main.querySelector(".turn")) window.scrollBy(0, below());
    });
    for (const part of parts) follow.observe(part, {childList: true, subtree: true, characterData: true});
    const question = document.querySelector("#question textarea");
    const isFree = document.activeElement === document.body && question?.offsetParent;
    if (isFree && !matchMedia("(pointer: coarse)").matches) question.focus({preventScroll: true});
  };
  watch();
}

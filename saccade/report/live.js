// News of a run that trains

async function poll() {
  const live = document.getElementById("live");
  try {
    const answer = await fetch("data.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const found = await answer.json();
    page.charts = found.charts;
    showCurves();
    found.summaries.forEach((summary, k) => {
      const box = document.querySelector(`[data-run="${k}"]`);
      for (const name of ["trained", "health"]) box.querySelector(`[data-say="${name}"]`).textContent = summary[name];
      box.querySelector(".state").textContent = summary.state;
    });
    const fresh = found.version !== page.version;
    live.textContent = fresh ? "There is more to see now: reload the page." : `Newest figures of ${new Date().toLocaleTimeString()}.`;
  } catch {
    live.textContent = "The server does not answer; these are its last figures.";
  }
  setTimeout(poll, 2000);
}

showCurves();
const clouds = [...document.querySelectorAll(".map")].map((box, k) => new Cloud(box, page.maps[k]));
const cards = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    cards.unobserve(target);
    clouds[target.dataset.map].thumbnails.fill(target, Number(target.dataset.point), target.clientWidth);
  }
}, { rootMargin: "400px" });
document.querySelectorAll(".thumb[data-map]").forEach((thumb) => cards.observe(thumb));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  showCurves();
  clouds.forEach((cloud) => {
    cloud.later();
    cloud.keys?.();
  });
});
if (page.version) setTimeout(poll, 2000);

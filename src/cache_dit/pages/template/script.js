"use strict";
const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const asked = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || asked) === "dark" ? "light" : "dark";
});

const cut = document.getElementById("cut");
if (cut) {
  const show = () => cut.parentElement.style.setProperty("--cut", `${cut.value}%`);
  cut.addEventListener("input", show);
  show();
}

// The step that is pointed at, or gone to with the arrow keys, is told in words below the bars.
for (const track of document.querySelectorAll(".track")) {
  const steps = [...track.querySelectorAll(".hit")];
  const told = track.querySelector("output");
  let at = -1;
  const tell = (step) => {
    if (step < 0 || step >= steps.length) return;
    if (at >= 0) steps[at].classList.remove("on");
    at = step;
    steps[at].classList.add("on");
    told.classList.add("told");
    told.textContent = steps[at].querySelector("title").textContent;
  };
  for (const plot of track.querySelectorAll(".plot")) {
    const point = (event) => {
      const box = plot.getBoundingClientRect();
      tell(Math.floor(((event.clientX - box.left) / box.width) * steps.length));
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
  }
  track.addEventListener("keydown", (event) => {
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: steps.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    tell(next);
  });
}

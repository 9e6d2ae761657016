for (const box of document.querySelectorAll(".previews")) {
  const slider = box.querySelector("input"), pictures = [...box.querySelectorAll("img")];
  if (!slider) continue;
  const show = () => {
    pictures.forEach((picture, k) => { picture.hidden = k !== Number(slider.value); });
    box.querySelector("output").value = pictures[slider.value].dataset.step;
    slider.setAttribute("aria-valuetext", `after ${pictures[slider.value].dataset.step} steps`);
  };
  slider.addEventListener("input", show);
}

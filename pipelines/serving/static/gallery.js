// Makes the gallery live. All that comes from the model (names of classes) is put on the page as
// text, never as markup.
"use strict";

const COUNT = 16;
const at = (id) => document.getElementById(id);
const tell = (text, bad = false) => {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
};

// The words of a shell that mean exactly this text.
const quoted = (text) =>
  /^[\w@%+=:,./-]+$/.test(text) ? text : "'" + text.replaceAll("'", `'"'"'`) + "'";
const whole = (input) => {
  const number = Number(input.value);
  return Number.isSafeInteger(number) && number >= 0 ? number : 0;
};

function address(page, wish) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(wish)) {
    if (value !== null && value !== "") query.set(name, value);
  }
  return `${page}?${query}`;
}

// ---- images from seeds -------------------------------------------------------------------------

function gallery(model) {
  const tiles = [];
  let shown = null;  // the tile whose image is shown large
  let timer = 0;

  function tile(button) {
    const image = document.createElement("img"), label = document.createElement("span");
    image.addEventListener("load", count);
    image.addEventListener("error", () => complain(image));
    button.className = "picture";
    button.append(image, label);
    const made = { button, image, label, wish: null, page: "image.png" };
    button.addEventListener("click", () => enlarge(made));
    return made;
  }

  function count() {
    const ready = tiles.filter((t) => t.image.complete && t.image.naturalWidth).length;
    const first = tiles[0].wish.seed;
    if (ready === COUNT) tell(`${COUNT} images, seeds ${first} to ${first + COUNT - 1}`);
  }

  async function complain(image) {  // an image cannot say why it failed; the answer to it can
    try {
      const answer = await fetch(image.src);
      if (answer.ok) return;
      tell((await answer.json()).error, true);
    } catch {
      tell("the server does not answer", true);
    }
  }

  function set(made, page, wish, words, short = words) {
    const source = address(page, wish);
    Object.assign(made, { wish, page });
    made.image.alt = words;
    made.label.textContent = short;
    if (made.image.getAttribute("src") !== source) made.image.src = source;
  }

  const truncation = () => {
    const value = at("truncation")?.value ?? "1";
    if (at("truncation")) at("truncation-value").textContent = value;
    return value === "1" ? null : value;
  };
  const classOf = (number) => {
    if (!model.classes.length) return null;
    return at("class").value || model.classes[number % model.classes.length];
  };

  function show() {
    const first = whole(at("seed-number"));
    tiles.slice(0, COUNT).forEach((made, number) => {
      const name = classOf(number), seed = first + number;
      const wish = { seed, class: name, truncation: truncation() };
      if (name === null) set(made, "image.png", wish, `seed ${seed}`);
      else set(made, "image.png", wish, `${name}, seed ${seed}`, `${name} · ${seed}`);
    });
    if (model.style_layers) mix();
  }

  function mix() {
    const layers = Number(at("mix-layers").value);
    at("mix-layers-value").textContent = `${layers} of ${model.style_layers}`;
    const shared = { class: classOf(0), truncation: truncation() };
    const seed = whole(at("mix-seed")), other = whole(at("mix-other"));
    set(mixing[0], "image.png", { seed, ...shared }, `seed ${seed}`);
    set(mixing[2], "image.png", { seed: other, ...shared }, `seed ${other}`);
    if (layers) {
      const wish = { seed, with: other, layers: `0-${layers - 1}`, ...shared };
      set(mixing[1], "mix.png", wish, `${seed} with layers of ${other}`);
    } else {
      set(mixing[1], "image.png", { seed, ...shared }, `seed ${seed}`);
    }
  }

  function command(made) {
    const wish = made.wish;
    const words = made.page === "mix.png"
      ? ["mix", "--rows", wish.seed, "--columns", wish.with, "--layers", wish.layers]
      : ["generate", "--seeds", wish.seed];
    if (wish.class !== null) words.push("--class", quoted(wish.class));
    if (wish.truncation !== null) words.push("--truncation", wish.truncation);
    words.splice(1, 0, model.command);
    return `gan-train ${words.join(" ")} --out picture.png`;
  }

  function enlarge(made) {
    shown = made;
    at("large-image").src = made.image.src;
    at("large-image").alt = made.image.alt;
    at("large-title").textContent = made.image.alt;
    at("large-link").href = made.image.src;
    at("large-link").textContent = decodeURI(made.image.src);
    at("large-command").textContent = command(made);
    at("large-keys").hidden = !tiles.slice(0, COUNT).includes(made);
    if (!at("large").open) at("large").showModal();
  }

  function step(by) {  // the image before or after the large one, on another page if need be
    const place = tiles.indexOf(shown);
    if (place < 0 || place >= COUNT) return;
    const next = place + by;
    if (next < 0 && whole(at("seed-number")) === 0) return;
    if (next < 0 || next >= COUNT) turn(by * COUNT);
    enlarge(tiles[(next + COUNT) % COUNT]);
  }

  function turn(by) {
    at("seed-number").value = Math.max(0, whole(at("seed-number")) + by);
    at("seed").value = at("seed-number").value;
    show();
  }

  const soon = () => {  // a slider that is drawn asks when it rests
    clearTimeout(timer);
    timer = setTimeout(show, 120);
    truncation();
  };

  for (let number = 0; number < COUNT; number++) {
    const button = document.createElement("button");
    button.type = "button";
    at("images").append(button);
    tiles.push(tile(button));
  }
  const mixing = model.style_layers
    ? ["mix-one", "mix-both", "mix-two"].map((id) => tile(at(id))) : [];
  if (model.resolution <= 64) document.body.classList.add("small");

  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("seed").addEventListener("input", () => {
    at("seed-number").value = at("seed").value;
    soon();
  });
  at("seed-number").addEventListener("input", () => {
    at("seed").value = at("seed-number").value;
    soon();
  });
  for (const id of ["class", "truncation", "mix-seed", "mix-other", "mix-layers"]) {
    at(id)?.addEventListener("input", soon);
  }
  at("before").addEventListener("click", () => turn(-COUNT));
  at("next").addEventListener("click", () => turn(COUNT));
  at("close").addEventListener("click", () => at("large").close());
  at("large").addEventListener("close", () => shown?.button.focus());
  at("large").addEventListener("click", (event) => {
    if (event.target === at("large")) at("large").close();  // beside it
  });
  at("large").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  at("copy").hidden = !navigator.clipboard;  // browsers give it to secure addresses alone
  at("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(at("large-command").textContent);
    at("copy").textContent = "Copied";
    setTimeout(() => { at("copy").textContent = "Copy the command"; }, 1500);
  });
  show();
}

// ---- pictures that are sent --------------------------------------------------------------------

function converter(model) {
  async function convert() {
    const file = at("file").files[0];
    if (!file) return;
    tell("Working ...");
    try {
      const to = at("to")?.value ?? null;
      const answer = await fetch(address("image.png", { to }), { method: "POST", body: file });
      if (!answer.ok) return tell((await answer.json()).error, true);
      const made = URL.createObjectURL(await answer.blob());
      for (const id of ["given", "made"]) URL.revokeObjectURL(at(id).src);
      at("given").src = URL.createObjectURL(file);
      at("made").src = made;
      at("save").href = made;
      at("pair").hidden = false;
      tell(model.scale ? `${model.scale} times as wide and high` : `made ${to}`);
    } catch {
      tell("the server does not answer", true);
    }
  }
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("file").addEventListener("change", convert);
  at("to")?.addEventListener("change", convert);
}

fetch("model.json")
  .then((answer) => answer.json())
  .then((model) => (model.task === "generate" ? gallery(model) : converter(model)))
  .catch(() => tell("the server does not answer", true));

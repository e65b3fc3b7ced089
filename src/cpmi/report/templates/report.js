(() => {
  "use strict";

  // Texts of trajectories are data: they reach the page through textContent alone, so nothing in them can run.
  const element = (id) => document.getElementById(id);
  const { runs, trajectories } = JSON.parse(element("data").textContent);
  const list = element("list");
  const rows = element("rows");
  const detail = element("detail");
  const HUMAN = { true: ["right", "✓ right"], false: ["wrong", "✗ wrong"], null: ["none", "– not annotated"] };
  const OUTCOME = { right: ["right", "✓ right"], wrong: ["wrong", "✗ wrong"], unknown: ["none", "? not known"] };
  const CHOICES = ["subset", "outcome", "human", "lowest", "attempt"];
  const DEFAULTS = { q: "", sort: "file", subset: "", outcome: "", human: "", lowest: "", attempt: "" };

  const state = { ...DEFAULTS, run: 0, side: false };
  let shown = []; // indices of the trajectories that pass the filters, in order
  let chosen = -1; // index of the trajectory on the right
  let place = -1; // where it stands among those shown

  // A narrow window lays the table of steps out as blocks; the roles keep it a table for those who hear it.
  const ROLES = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell" };

  function make(tag, className, text, ...children) {
    const node = document.createElement(tag);
    if (ROLES[tag]) node.setAttribute("role", ROLES[tag]);
    if (className) node.className = className;
    if (text !== undefined && text !== null) node.textContent = text;
    node.append(...children);
    return node;
  }

  // --- numbers and colors ---------------------------------------------------------------------------------------

  function strength(run, reward) {
    return run.scale ? Math.max(-1, Math.min(1, (reward - run.center) / run.scale)) : 0;
  }

  function shade(run, reward) {
    const level = Math.round(4 * strength(run, reward));
    return (level < 0 ? "m" : "p") + Math.abs(level);
  }

  function number(run, reward) {
    const text = Math.abs(reward).toFixed(run.decimals);
    const sign = reward < 0 && Number(text) !== 0 ? "−" : run.signed && Number(text) !== 0 ? "+" : "";
    return sign + text;
  }

  function mark([kind, text]) {
    return make("span", `mark ${kind}`, text);
  }

  // --- which, and in which order --------------------------------------------------------------------------------

  const texts = []; // lower case, made when it is first searched
  function textOf(index) {
    const t = trajectories[index];
    return (texts[index] ??= [t.id, t.question, ...t.steps].join("\n").toLowerCase());
  }

  const human = (t) => (t.labels === null ? "none" : t.firstError === null ? "clean" : "error");

  function attempt(t) {
    const entry = t.runs[state.run];
    return entry === null ? "missing" : entry.error === undefined ? "rewarded" : "failed";
  }

  function lowestIs(t, wanted) {
    if (wanted === "differ") return t.differ;
    const lowest = t.runs[state.run]?.lowest;
    return t.firstError !== null && lowest !== undefined && lowest.includes(t.firstError) === (wanted === "hit");
  }

  function passes(index, words) {
    const t = trajectories[index];
    return (
      (!state.subset || t.tags.subset === state.subset) &&
      (!state.outcome || t.outcome === state.outcome) &&
      (!state.human || human(t) === state.human) &&
      (!state.attempt || attempt(t) === state.attempt) &&
      (!state.lowest || lowestIs(t, state.lowest)) &&
      (!words || textOf(index).includes(words))
    );
  }

  const collator = new Intl.Collator("en", { numeric: true });
  const surprise = (index) => trajectories[index].runs[state.run]?.surprise ?? -Infinity;
  const ORDERS = {
    surprise: (a, b) => (surprise(a) === surprise(b) ? a - b : surprise(b) - surprise(a)),
    id: (a, b) => collator.compare(trajectories[a].id, trajectories[b].id) || a - b,
    steps: (a, b) => trajectories[b].steps.length - trajectories[a].steps.length || a - b,
  };

  function filter() {
    const words = state.q.trim().toLowerCase();
    shown = trajectories.map((_, index) => index).filter((index) => passes(index, words));
    if (ORDERS[state.sort]) shown.sort(ORDERS[state.sort]);
    place = shown.indexOf(chosen);
    rows.style.height = `${shown.length * rowHeight()}px`;
    const all = trajectories.length.toLocaleString("en");
    const one = trajectories.length === 1 ? "trajectory" : "trajectories";
    element("count").textContent =
      shown.length === trajectories.length ? `${all} ${one}` : `${shown.length.toLocaleString("en")} of ${all} ${one}`;
  }

  // --- the list: only the rows in sight exist -------------------------------------------------------------------

  const rowHeight = () => 4.5 * parseFloat(getComputedStyle(document.documentElement).fontSize);

  function drawList() {
    const height = rowHeight();
    rows.style.height = `${shown.length * height}px`;
    const first = Math.max(0, Math.floor(list.scrollTop / height) - 5);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 5);
    const drawn = [];
    for (let i = first; i < last; i += 1) drawn.push(drawRow(i, height));
    rows.replaceChildren(...drawn);
    if (!shown.length) rows.replaceChildren(make("p", "empty", "No trajectory is like that."));
    const active = rows.querySelector("[aria-selected=true]");
    if (active) list.setAttribute("aria-activedescendant", active.id);
    else list.removeAttribute("aria-activedescendant");
  }

  function drawRow(i, height) {
    const t = trajectories[shown[i]];
    const row = make("div", "row");
    row.id = `row-${shown[i]}`;
    row.dataset.index = shown[i];
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(i === place));
    row.setAttribute("aria-setsize", String(shown.length));
    row.setAttribute("aria-posinset", String(i + 1));
    row.style.top = `${i * height}px`;
    row.append(
      make("span", "", null, make("b", "", t.id), mark(OUTCOME[t.outcome])),
      make("span", "gist", t.question.slice(0, 120)),
      strip(t),
    );
    return row;
  }

  function strip(t) {
    const entry = t.runs[state.run];
    const node = make("span", "strip");
    if (entry === null) return make("span", "strip", null, make("span", "", "no line"));
    if (entry.error !== undefined) return make("span", "strip", null, make("span", "", "failed"));
    node.setAttribute("aria-hidden", "true");
    entry.rewards.slice(0, 24).forEach((reward, i) => {
      node.append(make("i", shade(runs[state.run], reward) + (i === t.firstError ? " fault" : "")));
    });
    if (entry.rewards.length > 24) node.append(make("span", "", `+${entry.rewards.length - 24}`));
    return node;
  }

  function reveal() {
    if (place < 0) return;
    const height = rowHeight();
    const top = place * height;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
  }

  // --- one trajectory -------------------------------------------------------------------------------------------

  function drawDetail() {
    const t = trajectories[chosen];
    if (!t) {
      detail.replaceChildren(make("p", "empty", "Choose a trajectory."));
      return;
    }
    const which = state.side ? runs.map((_, i) => i) : [state.run];
    detail.replaceChildren(drawHead(t), ...drawTags(t), text("p", "question", t.question), drawAnswers(t, which));
    for (const i of which) detail.append(...drawFailure(t.runs[i], runs[i]));
    detail.append(drawSteps(t, which), legend());
  }

  function text(tag, className, content) {
    const node = make(tag, `text ${className}`, content);
    node.dir = "auto";
    return node;
  }

  function drawHead(t) {
    const before = make("button", "", "← Previous");
    const after = make("button", "", "Next →");
    before.type = after.type = "button";
    before.id = "previous";
    after.id = "next";
    before.disabled = place === 0 || !shown.length;
    after.disabled = place === shown.length - 1 || !shown.length;
    before.addEventListener("click", () => move(-1, "previous"));
    after.addEventListener("click", () => move(1, "next"));
    const where = place < 0 ? "not among those in the list" : `${place + 1} of ${shown.length}`;
    return make("header", "", null, make("h3", "", t.id), make("span", "beside", where), before, after);
  }

  function drawTags(t) {
    const tags = Object.entries(t.tags);
    return tags.length ? [make("ul", "chips", null, ...tags.map(([k, v]) => make("li", "", `${k}: ${v}`)))] : [];
  }

  function drawAnswers(t, which) {
    const node = make("dl", "answers");
    const add = (term, ...content) => node.append(make("dt", "", term), make("dd", "", null, ...content));
    add("Right answer", t.gold ?? "not known");
    add("This solution's", `${t.final ?? "none found"} `, mark(OUTCOME[t.outcome]));
    for (const i of which) {
      const entry = t.runs[i];
      const name = which.length > 1 ? ` (${runs[i].name})` : "";
      const answers = (entry?.against ?? []).map(([answer, kind]) => (kind ? `${answer} (${kind})` : answer));
      if (answers.length) add(`Measured against${name}`, answers.join(", "));
      if (entry?.contrast !== undefined) add(`Contrast${name}`, entry.contrast);
    }
    return node;
  }

  function drawFailure(entry, run) {
    if (entry === null) return [make("p", "failure", `${run.name} has no line for this trajectory.`)];
    return entry.error === undefined ? [] : [make("p", "failure", `${run.name} failed here: ${entry.error}`)];
  }

  function drawSteps(t, which) {
    const column = (name) => {
      const cell = make("th", "", name);
      cell.scope = "col";
      cell.setAttribute("role", "columnheader");
      return cell;
    };
    const names = which.map((i) => (which.length > 1 ? runs[i].name : `Reward, ${runs[i].name}`));
    const head = make("tr", "", null, ...["#", "People", ...names, "Step"].map(column));
    const body = make("tbody", "", null, ...t.steps.map((_, i) => drawStep(t, i, which)));
    const caption = make("caption", "hidden", "Steps with human labels and rewards");
    return make("table", "steps", null, caption, make("thead", "", null, head), body);
  }

  function drawStep(t, i, which) {
    const head = make("th", "", String(i + 1));
    head.scope = "row";
    head.setAttribute("role", "rowheader");
    const label = make("td", "", null, mark(HUMAN[t.labels === null ? null : t.labels[i]]));
    if (i === t.firstError) label.append(make("span", "lowest", "first wrong"));
    const words = make("td", "", null, text("div", "", t.steps[i]));
    const reward = t.runs[state.run]?.rewards?.[i];
    if (which.length === 1 && reward !== undefined) words.classList.add(shade(runs[state.run], reward));
    const rewards = which.map((run) => drawReward(t.runs[run], runs[run], i));
    if (which.length > 1) which.forEach((run, place) => (rewards[place].dataset.run = runs[run].name));
    return make("tr", "", null, head, label, ...rewards, words);
  }

  function drawReward(entry, run, i) {
    const reward = entry?.rewards?.[i];
    if (reward === undefined) return make("td", "reward", null, make("span", "number", "–"));
    const size = strength(run, reward);
    const fill = make("i");
    fill.style.width = `${50 * Math.abs(size)}%`;
    fill.style[size < 0 ? "right" : "left"] = "50%";
    const cell = make("td", `reward ${shade(run, reward)}`, null, make("span", "number", number(run, reward)));
    cell.append(make("span", "bar", null, fill));
    if (entry.lowest.includes(i) && entry.rewards.length > 1) cell.append(make("span", "lowest", "▾ lowest"));
    return cell;
  }

  function legend() {
    const boxes = make("span");
    for (const level of ["m4", "m3", "m2", "m1", "p0", "p1", "p2", "p3", "p4"]) boxes.append(make("i", level));
    boxes.setAttribute("aria-hidden", "true");
    const run = runs[state.run];
    const [low, high] = [run.center - run.scale, run.center + run.scale].map((reward) => number(run, reward));
    const scale = `${run.name}: from ${low} or lower, over ${run.center}, to ${high} or higher`;
    return make("p", "legend", null, boxes, state.side ? "Each run on its own scale, from low to high" : scale);
  }

  // --- acting ---------------------------------------------------------------------------------------------------

  function choose(index) {
    chosen = index;
    place = shown.indexOf(index);
    detail.scrollTop = 0;
    reveal();
    drawList();
    drawDetail();
    remember();
  }

  function move(by, focus) {
    if (!shown.length) return;
    const to = place < 0 ? (by > 0 ? 0 : shown.length - 1) : Math.min(shown.length - 1, Math.max(0, place + by));
    choose(shown[to]);
    element(focus ?? "")?.focus();
  }

  function update() {
    filter();
    if (place < 0 && shown.length) {
      chosen = shown[0];
      place = 0;
    }
    list.scrollTop = 0;
    reveal();
    drawList();
    drawDetail();
    remember();
  }

  // --- the address: a view can be linked ------------------------------------------------------------------------

  let writing = 0;
  function remember() {
    clearTimeout(writing);
    writing = setTimeout(() => history.replaceState(null, "", `#${address()}`), 100);
  }

  function address() {
    const parts = new URLSearchParams();
    if (chosen >= 0) parts.set("id", trajectories[chosen].id);
    if (state.run) parts.set("run", runs[state.run].name);
    if (state.side) parts.set("side", "1");
    for (const [key, standard] of Object.entries(DEFAULTS)) if (state[key] !== standard) parts.set(key, state[key]);
    return parts.toString();
  }

  function recall() {
    const parts = new URLSearchParams(location.hash.slice(1));
    for (const [key, standard] of Object.entries(DEFAULTS)) {
      const control = element(key);
      state[key] = parts.get(key) ?? standard;
      if (!control) state[key] = standard;
      else {
        control.value = state[key];
        if (control.value !== state[key]) control.value = state[key] = standard; // no such choice
      }
    }
    state.run = Math.max(0, runs.findIndex((run) => run.name === parts.get("run")));
    state.side = parts.get("side") === "1" && runs.length > 1;
    element("run").value = String(state.run);
    if (element("side")) element("side").checked = state.side;
    const index = trajectories.findIndex((t) => t.id === parts.get("id"));
    if (index >= 0) chosen = index;
    filter();
    if (place < 0 && index < 0) chosen = shown[0] ?? -1;
    place = shown.indexOf(chosen);
    reveal();
    drawList();
    drawDetail();
    return index >= 0;
  }

  // --- controls and keys ----------------------------------------------------------------------------------------

  for (const key of ["sort", ...CHOICES]) {
    element(key)?.addEventListener("change", (event) => {
      state[key] = event.target.value;
      update();
    });
  }
  let typing = 0;
  element("q").addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      state.q = event.target.value;
      update();
    }, 80);
  });
  element("run").addEventListener("change", (event) => {
    state.run = Number(event.target.value);
    update();
  });
  element("side")?.addEventListener("change", (event) => {
    state.side = event.target.checked;
    update();
  });
  element("filters").addEventListener("submit", (event) => event.preventDefault());
  element("reset").addEventListener("click", () => {
    Object.assign(state, DEFAULTS);
    for (const key of Object.keys(DEFAULTS)) if (element(key)) element(key).value = state[key];
    update();
  });
  const keys = element("keys");
  element("help").addEventListener("click", () => keys.showModal());
  element("close").addEventListener("click", () => keys.close());
  rows.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) choose(Number(row.dataset.index));
  });
  list.addEventListener("scroll", drawList, { passive: true });
  addEventListener("resize", drawList);
  addEventListener("hashchange", () => {
    if (location.hash.includes("=")) recall(); // else a link to a section of the page
  });

  function nextRun() {
    state.run = (state.run + 1) % runs.length;
    element("run").value = String(state.run);
    update();
  }

  const KEYS = { j: () => move(1), k: () => move(-1), r: nextRun, "?": () => keys.showModal(), "/": search };
  const LIST_KEYS = { ArrowDown: () => move(1), ArrowUp: () => move(-1), Home: () => move(-Infinity), End: () => move(Infinity) };

  function search() {
    element("q").focus();
    element("q").select();
  }

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    const at = event.target;
    if (event.key === "Escape" && at === element("q")) {
      list.focus();
      return;
    }
    if (at.matches?.("input, select, textarea")) return;
    const act = KEYS[event.key] ?? (at === list ? LIST_KEYS[event.key] : undefined);
    if (!act) return;
    event.preventDefault();
    if (!"?".includes(event.key)) element("trajectories").scrollIntoView({ block: "nearest" });
    act();
  });

  if (recall()) element("trajectories").scrollIntoView({ behavior: "instant" });
})();

"use strict";
// Model text reaches the page through textContent alone.
(() => {
  const SIZE = 20;
  const FLAGS = {
    restarted: "restarted", improved: "improved", worse: "not improved",
    implicit: "implicit recovery", declined: "implicit decline", "on topic": "ended on topic",
    steered: "ended steered", degraded: "degraded", missing: "no valid score", unjudged: "not judged",
  };
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("trials").textContent);
  const form = find("filters"), pages = find("pages"), list = find("list");
  const trials = data.trials;
  let found = trials, page = 0;

  function make(tag, text, kind) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  }

  const textOf = (t) => t.pieces.map((p) => p[0]).join("");
  // lower-cased texts are made at the first search and kept: a search over thousands must be instant
  const haystack = (t) => (t.hay ??= (t.key + "\n" + t.question + "\n" + textOf(t)).toLowerCase());
  const first = (t) => t.scores[0] ?? null;
  const gain = (t) => (t.scores.length > 1 && first(t) !== null && t.scores.at(-1) !== null
    ? t.scores.at(-1) - first(t) : null);
  const directionName = (t) => (t.direction ? t.direction + (t.label ? ` (${t.label})` : "") : "unsteered");
  const VALUES = { run: (t) => data.runs[t.run], protocol: (t) => t.protocol, arm: (t) => t.arm, direction: directionName };
  const ORDERS = { key: null, gain: [gain, -1], loss: [gain, 1], low: [first, 1], high: [first, -1] };

  function option(select, value, text) {
    const element = make("option", text);
    element.value = value;
    select.append(element);
  }

  function fill() {
    for (const [name, value] of Object.entries(VALUES)) {
      const counts = new Map();
      for (const t of trials) counts.set(value(t), (counts.get(value(t)) ?? 0) + 1);
      const select = form.elements[name];
      option(select, "", `any (${counts.size})`);
      const names = [...counts.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      for (const each of names) option(select, "=" + each, `${each}: ${counts.get(each)}`);
      select.parentElement.hidden = counts.size < 2;
    }
    option(form.elements.flag, "", "anything");
    for (const [flag, text] of Object.entries(FLAGS)) {
      const n = trials.filter((t) => t.flags.includes(flag)).length;
      if (n) option(form.elements.flag, flag, `${text}: ${n}`);
    }
  }

  function filter() {
    const want = Object.fromEntries(new FormData(form));
    const words = want.words.toLowerCase().split(/\s+/).filter(Boolean);
    const checks = Object.entries(VALUES).filter(([name]) => want[name]);
    found = trials.filter((t) =>
      checks.every(([name, value]) => "=" + value(t) === want[name]) &&
      (!want.flag || t.flags.includes(want.flag)) &&
      words.every((word) => haystack(t).includes(word)));
    if (ORDERS[want.order]) {
      const [value, sign] = ORDERS[want.order];
      const rank = (t) => (value(t) === null ? Infinity : sign * value(t));
      found = [...found].sort((a, b) => (rank(a) < rank(b) ? -1 : rank(a) > rank(b) ? 1 : 0));
    }
    show(0);
  }

  function show(wanted) {
    const last = Math.max(1, Math.ceil(found.length / SIZE));
    page = Math.min(Math.max(wanted, 0), last - 1);
    list.replaceChildren(...found.slice(page * SIZE, (page + 1) * SIZE).map(card));
    const span = found.length ? `, ${page * SIZE + 1} to ${Math.min((page + 1) * SIZE, found.length)} shown` : "";
    find("count").textContent = `${found.length} of ${trials.length} trials${span}`;
    find("last").textContent = String(last);
    pages.hidden = last === 1;
    const [previous, number, next] = pages.querySelectorAll("button, input");
    previous.disabled = page === 0;
    next.disabled = page === last - 1;
    number.value = String(page + 1);
    number.max = String(last);
  }

  function card(t) {
    const article = make("article", undefined, "trial");
    const head = make("header");
    head.append(make("h3", t.question));
    const where = [...(data.runs.length > 1 ? [data.runs[t.run]] : []), t.protocol, t.arm];
    if (t.direction) where.push(`steered by ${directionName(t)} at ${t.strength}`);
    head.append(make("p", where.join(" · ")));
    if (t.steering.length > 1) head.append(make("p", "interventions: " + t.steering.join("; ")));
    if (t.prompt) head.append(make("p", "the model saw: " + t.prompt));
    const tags = make("p");
    for (const flag of t.flags) tags.append(make("span", FLAGS[flag], "tag"));
    head.append(tags);
    article.append(head, response(t), foot(t));
    return article;
  }

  function response(t) {
    const text = make("div", undefined, "text");
    text.dir = "auto";
    let attempt = -1;
    for (const [words, of, restart] of t.pieces) {
      const colour = of < 0 ? "" : "a" + Math.min(of, 3);
      if (of >= 0 && of !== attempt) {
        attempt = of;
        const score = t.scores[of] === null ? "no score" : t.scores[of];
        text.append(make("span", `attempt ${of + 1}: ${score}`, "score"));
      }
      text.append(make(restart ? "mark" : "span", words, colour));
    }
    if (!t.pieces.length) text.append(make("em", "(empty response)"));
    return text;
  }

  function foot(t) {
    const foot = make("footer");
    const scores = t.scores.map((s) => (s === null ? "none" : s)).join(", then ") || "none";
    const facts = [`judge: ${t.status}`, `scores: ${scores}`];
    if (t.thirds) facts.push(`first and last third: ${t.thirds.map((s) => s ?? "none").join(", ")}`);
    facts.push(`ended by ${t.finish} after ${t.tokens} tokens`, `seed ${t.seed}`);
    if (t.prefill) facts.push(`first ${t.prefill} characters prefilled`);
    foot.append(make("p", facts.join(" · ")));
    if (t.judge) foot.append(make("p", "the judge: " + t.judge));
    const line = make("p");
    line.append(make("code", data.commands[t.run] + t.key));
    foot.append(line);
    return foot;
  }

  fill();
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  pages.addEventListener("click", (event) => {
    const step = { previous: -1, next: 1 }[event.target.name];
    if (step) { show(page + step); list.scrollIntoView(); }
  });
  pages.addEventListener("change", (event) => show(Number(event.target.value) - 1));
  // a link to #trial-KEY anywhere on the page shows that trial alone
  function jump() {
    const key = location.hash.match(/^#trial-([0-9a-f]+)$/)?.[1];
    if (!key) return;
    form.reset();
    form.elements.words.value = key;
    filter();
    list.scrollIntoView();
  }

  filter();
  addEventListener("hashchange", jump);
  jump();
})();

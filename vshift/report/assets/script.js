"use strict";
// Figures are drawn by Vega from data held once; everything else on the page works without them.
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // ---- data: columns, words as numbers into a list, → rows --------------------------------------
  const unpacked = {};
  function rows(name) {
    if (!unpacked[name]) {
      const { size, columns } = study.data[name];
      const names = Object.keys(columns);
      const values = names.map((key) => {
        const { words, codes, values: plain } = columns[key];
        return words ? codes.map((code) => (code < 0 ? null : words[code])) : plain;
      });
      unpacked[name] = Array.from({ length: size }, (_, i) =>
        Object.fromEntries(names.map((key, column) => [key, values[column][i]])));
    }
    return unpacked[name];
  }

  // ---- light and dark ----------------------------------------------------------------------------
  const theme = document.getElementById("theme");
  const isDark = () => document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.setAttribute("aria-label", "Switch between light and dark");
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();

  // ---- tables ------------------------------------------------------------------------------------
  const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  function keyOf(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.key !== undefined) return Number(cell.dataset.key);
    const text = cell.textContent.trim();
    return text === "–" ? null : text;
  }
  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last
    const both = typeof a === "number" && typeof b === "number";
    return sign * (both ? a - b : order.compare(String(a), String(b)));
  }
  function sortBy(table, head) {
    const falling = head.getAttribute("aria-sort") === "ascending";
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [keyOf(row, head.cellIndex), row]);
    keyed.sort((one, other) => compare(one[0], other[0], falling ? -1 : 1));
    body.append(...keyed.map(([, row]) => row));
  }
  all("main > section table").forEach((table) => {
    all("thead th", table).forEach((head) => {
      head.firstElementChild.addEventListener("click", () => sortBy(table, head));
    });
  });
  all("input[data-table]").forEach((input) => {
    const found = [...document.getElementById(`table-${input.dataset.table}`).tBodies[0].rows];
    const count = document.querySelector(`[data-count="${input.dataset.table}"]`);
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      found.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !wanted.every((word) => text.includes(word));
      });
      const left = found.filter((row) => !row.hidden).length;
      const rows = `${found.length} ${found.length === 1 ? "row" : "rows"}`;
      count.textContent = wanted.length ? `${left} of ${rows}` : rows;
    });
  });

  // ---- figures -----------------------------------------------------------------------------------
  const ERRORS = 1; // Vega's word for the level: an empty figure is no cause for a warning
  const views = new Map(); // figure id → Vega view
  const hidden = new Set(study.hidden); // labels of configs that are switched off

  function specOf(figure, forFile) {
    const spec = structuredClone(study.specs[figure.dataset.figure]);
    const name = figure.dataset.source;
    spec.datasets = { ...spec.datasets, [name]: rows(name).map((row) => ({ ...row })) };
    for (const param of spec.params || []) {
      if (param.name === "hidden") param.value = [...hidden];
    }
    const grouped = Boolean(figure.parentElement.querySelector(".legend"));
    if (forFile) {
      spec.width = 600;
      spec.autosize = { type: "pad" };
    } else if (grouped) {
      spec.config.legend = { disable: true }; // the page has its own, which keyboards reach
    } else if (figure.clientWidth < 520) {
      spec.config.legend = { ...spec.config.legend, orient: "top", columns: 3 };
    }
    return spec;
  }

  async function draw(figure) {
    const id = figure.dataset.figure;
    if (views.has(id)) return;
    views.set(id, null);
    const box = figure.parentElement;
    const before = String([...hidden]);
    try {
      // `ast`: expressions are interpreted, as the page's policy forbids making code out of text.
      const made = await vegaEmbed(figure, specOf(figure, false), {
        mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
        bind: box.querySelector(".controls"), logLevel: ERRORS,
        tooltip: { theme: "page", disableDefaultStyle: true },
      });
      views.set(id, made.view);
      if (String([...hidden]) !== before) await setHidden(made.view); // a click while it was drawn
      box.querySelector(".save").hidden = false;
      figure.dataset.ready = "yes";
    } catch (error) {
      figure.append(element("p", { className: "failed", textContent: `Not drawn: ${error.message}` }));
      console.error(error);
    }
  }

  async function setHidden(view) {
    try {
      await view.signal("hidden", [...hidden]).runAsync();
    } catch (error) {
      if (!/Unrecognized signal/.test(String(error))) throw error; // a figure of one config
    }
  }

  // What is in sight first; the rest when the browser has nothing else to do.
  const figures = all(".chart");
  figures.forEach((figure) => {
    figure.style.minHeight = `${(study.specs[figure.dataset.figure].height || 160) + 30}px`;
  });
  const later = window.requestIdleCallback || ((work) => setTimeout(work, 30));
  const sight = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      sight.unobserve(entry.target);
      draw(entry.target);
    });
  }, { rootMargin: "300px" });
  figures.forEach((figure) => sight.observe(figure));
  const drawNext = () => {
    const next = figures.find((figure) => !views.has(figure.dataset.figure));
    if (next) draw(next).then(() => later(drawNext));
  };
  addEventListener("load", () => later(drawNext));
  addEventListener("beforeprint", () => figures.forEach(draw));

  // ---- legends -----------------------------------------------------------------------------------
  function markOf(group) {
    const drawn = document.getElementById("marks").content.querySelector(`[data-mark="${group.mark}"]`);
    return drawn.cloneNode(true);
  }
  function toggle(label, alone) {
    if (label === null) {
      hidden.clear();
    } else if (alone) {
      study.groups.forEach((group) => hidden.add(group.label));
      hidden.delete(label);
    } else if (!hidden.delete(label)) {
      hidden.add(label);
    }
    if (hidden.size === study.groups.length) hidden.clear(); // an empty figure is of no use
    showPressed();
    views.forEach((view) => view && setHidden(view));
  }
  function showPressed() {
    all(".legend [aria-pressed]").forEach((button) => {
      button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.label)));
    });
    all(".legend .all").forEach((button) => { button.hidden = hidden.size === 0; });
  }
  all(".legend").forEach((legend) => {
    study.groups.forEach((group) => {
      const button = element("button", { type: "button" }, markOf(group), group.label);
      button.dataset.label = group.label;
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", (event) => toggle(group.label, event.shiftKey));
      legend.append(button);
    });
    const everyone = element("button", { type: "button", className: "all", textContent: "all" });
    everyone.addEventListener("click", () => toggle(null, false));
    legend.append(everyone);
  });
  showPressed();

  // ---- files and data ----------------------------------------------------------------------------
  function download(name, href) {
    const link = element("a", { href, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    if (href.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }
  const blob = (text, type) => URL.createObjectURL(new Blob([text], { type }));

  async function forFile(figure) {
    const live = views.get(figure.dataset.figure);
    const made = await vegaEmbed(element("div"), specOf(figure, true), {
      mode: "vega-lite", renderer: "none", actions: false, ast: true,
    });
    for (const param of made.spec.params || []) {
      made.view.signal(param.name, live.signal(param.name)); // as chosen on the page
    }
    return made.view.runAsync();
  }

  function csv(table) {
    const names = Object.keys(table[0] || {});
    const cell = (value) => {
      let text = value === null || value === undefined ? "" : String(value);
      // A spreadsheet must not take a name for a formula.
      if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [names, ...table.map((row) => names.map((name) => row[name]))]
      .map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  async function save(figure, kind) {
    const name = `${figure.dataset.figure}.${kind}`;
    if (kind === "csv") return download(name, blob(csv(rows(figure.dataset.source)), "text/csv"));
    const view = await forFile(figure);
    if (kind === "svg") return download(name, blob(await view.toSVG(), "image/svg+xml"));
    return download(name, await view.toImageURL("png", 2));
  }

  const MOST = 300; // rows of the table on the page; the CSV has all
  function preview(details, figure) {
    const box = details.querySelector(".scroll");
    if (box.childElementCount) return;
    const table = rows(figure.dataset.source);
    const names = Object.keys(table[0] || {});
    const line = (row) => element("tr", {}, ...names.map((name) => {
      const number = typeof row[name] === "number";
      const text = row[name] === null ? "" : String(row[name]);
      return element("td", { className: number ? "number" : "", textContent: text });
    }));
    const heads = names.map((name) => element("th", { scope: "col", textContent: name }));
    heads.forEach((head) => { head.style.padding = "5px 10px"; });
    box.append(element("table", {}, element("thead", {}, element("tr", {}, ...heads)),
      element("tbody", {}, ...table.slice(0, MOST).map(line))));
    if (table.length > MOST) {
      box.append(element("p", { textContent: `The first ${MOST} of ${table.length} rows; the CSV has all.` }));
    }
  }

  figures.forEach((figure) => {
    const box = figure.parentElement;
    all("[data-save]", box).forEach((button) => {
      button.addEventListener("click", () => save(figure, button.dataset.save));
    });
    const details = box.querySelector("details");
    details.addEventListener("toggle", () => preview(details, figure));
  });
})();

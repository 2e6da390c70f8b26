"use strict";
// The page's behaviour. What models and people wrote goes into the page as text only (textContent).

const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const token = one('meta[name="csrf-token"]').content;
const RETRIES = 6;

function say(text, aloud = false) {
  const status = one("[data-status]");
  status.classList.toggle("sr", aloud);
  status.textContent = text;
}

function problem(form, text) { one("[data-problem]", form).textContent = text; }

// Sends a JSON object. What gets no answer is sent again: the server takes the same vote only once.
async function send(address, body) {
  for (let attempt = 0; ; attempt++) {
    try {
      const answer = await fetch(address, {
        method: "POST", body: JSON.stringify(body), credentials: "same-origin",
        headers: { "Content-Type": "application/json", "Accept": "application/json", "X-CSRF-Token": token },
      });
      if (answer.status < 500 || answer.status === 503 || attempt === RETRIES) {
        say("");
        const data = await answer.json().catch(() => ({ error: `The server answers ${answer.status}.` }));
        if (data.error?.message) data.error = data.error.message; // as the guard writes it
        return { ok: answer.ok, data };
      }
    } catch (error) {
      if (attempt === RETRIES) { say(""); return { ok: false, data: { error: "The server does not answer. Please try again." } }; }
    }
    say("The server does not answer; trying again …");
    await new Promise((done) => setTimeout(done, 300 * 2 ** attempt));
  }
}

// Forms that send what is in their fields.
for (const form of all("form[data-send]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.dataset.busy) return;
    form.dataset.busy = "yes";
    problem(form, "");
    const body = Object.fromEntries(new FormData(form));
    if ("turn" in form.dataset) body.after = Number(one("[data-judge]").dataset.ballot);
    const { ok, data } = await send(form.dataset.send, body);
    if (ok) { location.assign(form.dataset.then || data.page); return; }
    delete form.dataset.busy;
    problem(form, data.error);
  });
}

// Waiting for comparisons.
const waiting = one("[data-waiting]");
if (waiting) {
  const stream = new EventSource(waiting.dataset.waiting);
  stream.addEventListener("ready", () => { stream.close(); location.replace("/"); });
  stream.addEventListener("state", (event) => {
    const state = JSON.parse(event.data);
    one("[data-preparing]").hidden = !state.preparing;
    one("[data-all-judged]").hidden = state.preparing;
    problem(waiting, state.problem || "");
  });
}

// Judging.
const judge = one("[data-judge]");
let readable = null; // when both replies could be read
let edited = false;

function listen() {
  const stream = new EventSource(judge.dataset.stream);
  const text = (side) => one(`[data-text="${side}"]`);
  stream.addEventListener("open", () => { text("a").textContent = text("b").textContent = ""; });
  stream.addEventListener("piece", (event) => {
    const piece = JSON.parse(event.data);
    text(piece.side).append(piece.text);
  });
  stream.addEventListener("failed", (event) => {
    stream.close();
    all("[data-text]").forEach((each) => each.setAttribute("aria-busy", "false"));
    problem(judge, `There is nothing to judge: ${JSON.parse(event.data).message}.`);
  });
  stream.addEventListener("ready", (event) => {
    stream.close();
    judge.dataset.ballot = JSON.parse(event.data).ballot;
    history.replaceState(null, "", `/ballots/${judge.dataset.ballot}`);
    for (const each of all("[data-text]")) {
      each.setAttribute("aria-busy", "false");
      if (!each.textContent.trim()) { each.textContent = "(an empty reply)"; each.classList.add("none"); }
    }
    readable = performance.now();
    if (judge.dataset.cast) return;
    one("[data-verdicts]").disabled = false;
    one("[data-save]").disabled = false;
    all("[data-thumb]").forEach((each) => { each.disabled = false; });
  });
  stream.addEventListener("error", () => {
    if (stream.readyState === EventSource.CLOSED) problem(judge, "These replies are gone. Please load the page again.");
  });
}

function thumb(side) {
  const pressed = one(`[data-thumb="${side}"][aria-pressed="true"]`);
  return pressed ? pressed.dataset.value === "true" : null;
}

async function vote() {
  const chosen = one('input[name="verdict"]:checked', judge);
  if (!chosen) { problem(judge, "Choose first: A, B, a tie, both bad, or skip."); return; }
  if (judge.dataset.busy) return;
  judge.dataset.busy = "yes";
  problem(judge, "");
  const edit = one("#edit").value.trim(), reason = one("#reason").value.trim();
  const { ok, data } = await send("/votes", {
    ballot: Number(judge.dataset.ballot), verdict: chosen.value, good_a: thumb("a"), good_b: thumb("b"),
    edit: edit || null, reason: reason || null, seconds: (performance.now() - readable) / 1000,
  });
  delete judge.dataset.busy;
  if (ok) reveal(data); else problem(judge, data.error);
}

function reveal(data) {
  judge.dataset.cast = data.verdict;
  one("[data-voting]").remove();
  for (const side of ["a", "b"]) {
    one(`[data-policy="${side}"]`).textContent = data[side].label;
    if (data.verdict === side) one(`[data-side="${side}"]`).dataset.won = "";
  }
  one("[data-judged]").textContent = data.judged;
  edited = data.edited;
  one("[data-after-title]").textContent = `Saved: A was ${data.a.label}, B was ${data.b.label}`;
  one("[data-after]").hidden = false;
  say(one("[data-after-title]").textContent, true);
  after();
  one("[data-next]").focus();
}

// What can be done once a vote is kept.
function after() {
  const choice = one("[data-edit-choice]");
  if (!choice) return;
  if (edited) choice.hidden = false;
  const preferred = !choice.hidden ? "edit" : judge.dataset.cast === "b" ? "b" : "a";
  one(`[data-turn] input[value="${preferred}"]`).checked = true;
}

function open(name) {
  const more = one(`[data-more="${name}"]`);
  if (!more || more.closest("[hidden]")) return false;
  more.open = true;
  one("textarea", more).focus();
  return true;
}

if (judge) {
  listen();
  if (judge.dataset.cast) { after(); one("[data-next]").focus(); }
  judge.addEventListener("submit", (event) => { event.preventDefault(); vote(); });
  for (const button of all("[data-thumb]")) {
    button.addEventListener("click", () => {
      const was = button.getAttribute("aria-pressed") === "true";
      all(`[data-thumb="${button.dataset.thumb}"]`).forEach((each) => each.setAttribute("aria-pressed", "false"));
      button.setAttribute("aria-pressed", String(!was));
    });
  }
  for (const button of all("[data-copy]")) {
    button.addEventListener("click", () => {
      one("#edit").value = one(`[data-text="${button.dataset.copy}"]`).textContent;
      one("#edit").focus();
    });
  }
}

// Keys.
const help = one("dialog.help");
const single = one("[data-single-keys]");
if (single) {
  single.checked = localStorage.getItem("single-keys") !== "off";
  single.addEventListener("change", () => localStorage.setItem("single-keys", single.checked ? "on" : "off"));
  one("[data-help]").addEventListener("click", () => help.showModal());
}

function letter(key) {
  const target = all(`[data-key="${key}"]`).find((each) => !each.closest("[hidden]"));
  if (target) {
    if (target.disabled || (target.closest("fieldset") || {}).disabled) return true;
    if (target.type === "radio") { target.checked = true; target.focus(); } else target.click();
    return true;
  }
  return { e: () => open("edit"), r: () => open("reason"), c: () => open("turn"), "?": () => { help.showModal(); return true; } }[key]?.();
}

document.addEventListener("keydown", (event) => {
  const field = event.target;
  const writes = field.tagName === "TEXTAREA" || (field.tagName === "INPUT" && !["radio", "checkbox"].includes(field.type));
  if (event.isComposing || event.repeat || event.altKey || event.metaKey || help?.open) return;
  if (writes) {
    if (event.key === "Escape") { field.blur(); one("#main").focus(); }
    else if (event.key === "Enter" && (event.ctrlKey || ("enter" in field.dataset && !event.shiftKey))) {
      event.preventDefault();
      field.form.requestSubmit();
    }
    return;
  }
  if (event.ctrlKey) return;
  if (event.key === "Enter") {
    const native = ["A", "BUTTON", "SUMMARY"].includes(field.tagName);
    if (native || !judge) return;
    event.preventDefault();
    if (judge.dataset.cast) one("[data-next]").click();
    else if (!one("[data-save]").disabled) judge.requestSubmit();
  } else if (single?.checked && event.key.length === 1 && letter(event.key.toLowerCase())) event.preventDefault();
});

"use strict";
// Keeps pages up to date and adds small comforts. Every page can be read, and every form sent, without it.
(() => {
  const notice = document.getElementById("notice");
  const say = (text) => { if (notice.textContent !== text) notice.textContent = text; };

  // --- putting new HTML in place -----------------------------------------------------------------------------
  // What is alike stays the element it is: so focus, selection, ticks and open details survive an update.

  const KEPT = { open: "DETAILS" }; // attributes that the reader sets

  function sameElement(one, other) {
    return one.nodeType === other.nodeType && one.nodeName === other.nodeName && (one.id || "") === (other.id || "");
  }

  function updateAttributes(old, fresh) {
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && KEPT[name] !== old.nodeName) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
  }

  function updateNode(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    if (old.isEqualNode(fresh)) return;
    updateAttributes(old, fresh);
    updateChildren(old, fresh);
  }

  function updateChildren(old, fresh) {
    const byId = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
    let place = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      const known = wanted.id ? byId.get(wanted.id) : null;
      if (known && known !== place) {
        old.insertBefore(known, place);
        place = known;
      }
      if (place && sameElement(place, wanted)) {
        updateNode(place, wanted);
        place = place.nextSibling;
      } else {
        old.insertBefore(wanted, place);
      }
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  }

  function show(target, html) {
    const parsed = document.createElement("template");
    parsed.innerHTML = html;
    updateChildren(target, parsed.content);
    refresh();
  }

  // --- streams -----------------------------------------------------------------------------------------------
  // One stream a page, and none while nobody sees it: a browser opens only six connections to a host.

  const RETRY_MS = 3000;

  class Stream {
    constructor(target) {
      this.target = target;
      this.log = target.dataset.log ? document.getElementById(target.dataset.log) : null;
      this.place = null;
      this.open();
      document.addEventListener("visibilitychange", () => (document.hidden ? this.close() : this.open()));
    }

    open() {
      if (this.source || this.ended || document.hidden) return;
      const address = new URL(this.target.dataset.stream, location.href);
      if (this.place) address.searchParams.set("after", this.place);
      this.source = new EventSource(address);
      this.source.addEventListener("content", ({ data }) => { say(""); show(this.target, data); });
      this.source.addEventListener("line", (event) => this.line(event));
      this.source.addEventListener("ended", () => { this.ended = true; this.close(); });
      this.source.addEventListener("signed-out", () => location.reload());
      this.source.addEventListener("error", () => this.failed());
    }

    close() {
      this.source?.close();
      this.source = null;
    }

    line({ data, lastEventId }) {
      this.place = lastEventId;
      if (!this.log) return;
      const follows = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 8;
      this.log.append(`${data}\n`);
      while (this.log.childNodes.length > 2000) this.log.firstChild.remove();
      if (follows) this.log.scrollTop = this.log.scrollHeight;
    }

    // What is shown stays, and a notice says so until there is news again.
    async failed() {
      const refused = this.source?.readyState === EventSource.CLOSED;
      const status = await fetch("/ui/session").then((answer) => answer.status, () => 0);
      if (status === 401) location.reload(); // without a key that works, the page is the log-in form
      else if (status === 429) say("Too many requests with this key: the page goes on in a moment.");
      else say("The service gives no answer: what you see may be out of date.");
      if (!refused) return; // the browser connects again by itself
      this.close();
      setTimeout(() => this.open(), RETRY_MS);
    }
  }

  // --- times, ticks and copies -------------------------------------------------------------------------------

  function ago(seconds) {
    if (seconds < 10) return "just now";
    for (const [limit, unit, word] of [[60, 1, "s"], [3600, 60, "min"], [172800, 3600, "h"]]) {
      if (seconds < limit) return `${Math.floor(seconds / unit)} ${word} ago`;
    }
    return `${Math.floor(seconds / 86400)} days ago`;
  }

  function tellTimes() {
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const text = ago(Math.max(0, (Date.now() - Date.parse(time.dateTime)) / 1000));
      if (time.textContent !== text) time.textContent = text;
    }
  }

  const ticks = () => [...document.querySelectorAll("input[name=id][type=checkbox]")];

  function countTicks() {
    const chosen = ticks().filter((box) => box.checked);
    const is = (what) => chosen.some((box) => box.dataset.is === what);
    const allowed = { active: is("active"), retryable: is("retryable"), two: chosen.length === 2 };
    for (const button of document.querySelectorAll("button[data-needs]")) {
      button.disabled = !allowed[button.dataset.needs];
    }
    const told = document.getElementById("ticked");
    const text = chosen.length ? `${chosen.length} selected` : "";
    if (told && told.textContent !== text) told.textContent = text;
  }

  function refresh() {
    tellTimes();
    countTicks();
  }

  async function copy(button) {
    const text = document.getElementById(button.dataset.copy).textContent;
    await navigator.clipboard.writeText(text).then(
      () => { button.textContent = "Copied"; },
      () => { getSelection().selectAllChildren(document.getElementById(button.dataset.copy)); },
    );
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }

  // --- the form that tells as one types what would be sent ---------------------------------------------------

  function preview(form) {
    const target = document.getElementById(form.dataset.preview);
    let waiting = null;
    let asked = 0;
    async function ask() {
      const mine = ++asked;
      const answer = await fetch(form.dataset.address, { method: "POST", body: new URLSearchParams(new FormData(form)) })
        .catch(() => null);
      if (mine !== asked) return; // a later answer is on its way
      if (answer?.status === 401) location.reload();
      else if (answer?.ok) { say(""); show(target, await answer.text()); }
      else say("The service gives no answer: the estimate may be out of date.");
    }
    form.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(ask, 250);
    });
    ask();
  }

  document.addEventListener("change", ({ target }) => {
    if (target.matches("select[data-submit]")) target.form.requestSubmit();
    if (target.matches("[data-tick-all]")) for (const box of ticks()) box.checked = target.checked;
    countTicks();
  });
  document.addEventListener("click", ({ target }) => {
    if (target.matches("button[data-copy]")) copy(target);
  });
  document.addEventListener("submit", (event) => {
    const question = event.submitter?.dataset.ask ?? event.target.dataset.ask;
    if (question && !confirm(question)) event.preventDefault();
  });

  for (const target of document.querySelectorAll("[data-stream]")) new Stream(target);
  for (const form of document.querySelectorAll("form[data-preview]")) preview(form);
  for (const log of document.querySelectorAll(".log")) log.scrollTop = log.scrollHeight;
  setInterval(tellTimes, 5000);
  refresh();
})();

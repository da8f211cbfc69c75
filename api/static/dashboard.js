"use strict";
// Charts and small comforts of the dashboard. Everything works without it, but for the charts.
(() => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const frame = () => ({
    animation: false,
    textStyle: { fontFamily: "system-ui, sans-serif", color: css("--muted") },
  });

  const makers = {
    compare(data) {
      return {
        ...frame(),
        grid: { left: 8, right: 8, top: 28, bottom: 24 },
        xAxis: { type: "category", data: ["before", "after"], axisLabel: { color: css("--muted") }, axisTick: { show: false }, axisLine: { lineStyle: { color: css("--line") } } },
        yAxis: { type: "value", min: 0, show: false },
        series: [{
          type: "bar", barWidth: "46%",
          itemStyle: { borderRadius: [6, 6, 0, 0] },
          label: { show: true, position: "top", color: css("--ink"), fontWeight: 600, formatter: (p) => p.data.text },
          data: [
            { value: data.before, text: data.before_text, itemStyle: { color: css("--bar") } },
            { value: data.after, text: data.after_text, itemStyle: { color: css("--accent") } },
          ],
        }],
      };
    },
    timeline(data) {
      return {
        ...frame(),
        grid: { left: 44, right: 16, top: 16, bottom: 40 },
        xAxis: { type: "value", name: "seconds", nameLocation: "middle", nameGap: 26, axisLabel: { color: css("--muted") }, splitLine: { show: false } },
        yAxis: { type: "value", min: 0, max: 100, axisLabel: { color: css("--muted"), formatter: "{value} %" }, splitLine: { lineStyle: { color: css("--line") } } },
        series: [{ type: "line", step: "end", showSymbol: false, areaStyle: { opacity: 0.12 }, lineStyle: { width: 2 }, color: css("--accent"), data }],
      };
    },
  };

  function draw(root) {
    if (!window.echarts) return;
    for (const place of root.querySelectorAll("[data-chart]")) {
      const wanted = place.dataset.options;
      let chart = window.echarts.getInstanceByDom(place);
      if (chart && !place.querySelector("canvas")) { // a swap has emptied the place
        chart.dispose();
        chart = null;
      }
      if (chart && place.drawn === wanted) continue;
      chart ||= window.echarts.init(place, null, { renderer: "canvas" });
      chart.setOption(makers[place.dataset.chart](JSON.parse(wanted)), true);
      place.drawn = wanted;
    }
  }

  const redraw = () => draw(document);
  document.addEventListener("DOMContentLoaded", redraw);
  document.addEventListener("htmx:after:swap", redraw);
  document.addEventListener("htmx:sse:after:message", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const place of document.querySelectorAll("[data-chart]")) place.drawn = null;
    redraw();
  });

  // A refresh that fails leaves what is shown, and says so until one succeeds.
  const notice = document.getElementById("notice");
  function stale(status) {
    if (status === 401) location.reload(); // without a key that works, the page is the log-in form
    else if (status === 429) notice.textContent = "Too many requests with this key: the page goes on in a moment.";
    else notice.textContent = "The service gives no answer: what you see may be out of date.";
  }
  const fresh = () => { notice.textContent = ""; };
  document.addEventListener("htmx:after:request", ({ detail }) => {
    if (detail.ctx.response.status >= 400) stale(detail.ctx.response.status);
    else fresh();
  });
  document.addEventListener("htmx:error", ({ detail }) => detail.ctx && stale());
  document.addEventListener("htmx:sse:error", ({ detail }) => stale(detail.status));
  document.addEventListener("htmx:sse:after:connection", fresh);

  addEventListener("resize", () => {
    for (const place of document.querySelectorAll("[data-chart]")) window.echarts?.getInstanceByDom(place)?.resize();
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("select[data-submit]")) event.target.form.submit();
  });
})();

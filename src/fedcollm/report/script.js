"use strict";
// Unpacks plotly, and draws every figure in the page's own colors, and again whenever the color scheme or the width class
// changes.
(function () {
  let figures = {};
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 35rem)");

  function look() {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    const title = { font: { size: narrow.matches ? 11 : 12 } };
    const axis = { gridcolor: value("--line"), linecolor: value("--line"), zerolinecolor: value("--line"), title };
    const heat = [[0, value("--heat-low")], [0.5, value("--heat-middle")], [1, value("--heat-high")]];
    return {
      layout: {
        font: { family: value("--font"), size: narrow.matches ? 11 : 13, color: value("--soft") },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        hoverlabel: { bgcolor: value("--surface"), bordercolor: value("--line"), font: { color: value("--ink") }, namelength: -1 },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: value("--soft"), activecolor: value("--ink") },
        xaxis: axis,
        yaxis: axis,
      },
      data: {
        heatmap: [{ colorscale: heat }],
        bar: [{ marker: { line: { color: value("--surface"), width: 1 } } }],
      },
    };
  }

  function draw() {
    const template = look();
    const config = {
      responsive: true,
      displaylogo: false,
      displayModeBar: "hover",
      plotlyServerURL: "",
      modeBarButtons: [["toImage"]],
    };
    for (const [id, figure] of Object.entries(figures)) {
      const layout = structuredClone(figure.layout);
      layout.template = template;
      if (narrow.matches) {
        const named = figure.data.filter((trace) => trace.showlegend !== false).length;
        layout.height += 16 * Math.max(0, named - 4); // the legend takes one line per trace
        if (layout.meta && layout.meta.narrow) layout.yaxis.ticktext = layout.meta.narrow;
      }
      config.toImageButtonOptions = { format: "svg", filename: id };
      window.Plotly.react(id, structuredClone(figure.data), layout, config);
    }
  }

  function unpacked(id) {
    const packed = atob(document.getElementById(id).textContent.trim());
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  async function start() {
    const script = document.createElement("script");
    script.textContent = await unpacked("plotly");
    document.head.append(script);
    script.remove(); // it has run
    figures = JSON.parse(await unpacked("figures"));
    draw();
    dark.addEventListener("change", draw);
    narrow.addEventListener("change", draw);
  }

  start().catch((error) => {
    document.getElementById("undrawn").hidden = false;
    console.error(error);
  });
})();

// Draws what the page's JSON describes; crates/report/src/chart.rs says what its names mean.
'use strict';
(() => {
  const drawings = JSON.parse(document.getElementById('charts').textContent);
  const root = document.documentElement;
  const prefersDark = window.matchMedia('(prefers-color-scheme: dark)');
  const onPaper = window.matchMedia('print');

  // Slot 0 is ink. Colours stay apart for the colour-blind (after Okabe and Ito, and Tol); markers say it once more.
  const THEMES = {
    light: { paper: '#ffffff', ink: '#1b1b1f', pale: '#5c5f66', rule: '#e2e2df', limit: '#8a8d94', colours: ['#0072b2', '#d55e00',
      '#009e73', '#cc79a7', '#56b4e9', '#b58900', '#882255', '#44318d', '#777777', '#117733', '#999933', '#a0522d'] },
    dark: { paper: '#15171b', ink: '#f4f4f6', pale: '#a4a8b1', rule: '#2c3038', limit: '#8b909a', colours: ['#4fa8e0', '#ff8c42',
      '#2fcb9b', '#e8a3c8', '#9ad7ff', '#f0e442', '#e0709a', '#a99bf0', '#a8a8a8', '#7bc96f', '#cfcf6a', '#d9a07a'] },
  };
  const MARKERS = [['circle', 0], ['triangle', 0], ['rect', 0], ['rectRot', 0], ['crossRot', 0], ['triangle', 180], ['star', 0], ['cross', 0], ['rectRounded', 0]];
  const LONGEST_NAME = 36;
  // Pixels across on paper, which no window measures: less than A4 and Letter have between their margins.
  const PAPER_WIDTH = 640;

  // Numbers, by the units of crates/report/src/units.rs.
  const digits = (x) => {
    const size = Math.abs(x);
    if (size === 0) return '0';
    if (size < 1e-3 || size >= 1e5) return x.toExponential().length <= 6 ? x.toExponential().replace('e+', 'e') : x.toExponential(2).replace('e+', 'e');
    return String(Number(x.toPrecision(3)));
  };
  const scaled = (x, base, names) => {
    let step = 0;
    while (Math.abs(x) >= base && step + 1 < names.length) { x /= base; step += 1; }
    return digits(x) + names[step];
  };
  const seconds = (x) => (x === 0 ? '0 s' : x < 1e-6 ? `${digits(x * 1e9)} ns` : x < 1e-3 ? `${digits(x * 1e6)} µs` : x < 1 ? `${digits(x * 1e3)} ms` : `${digits(x)} s`);
  const tokens = (x) => (x >= 1024 ? `${digits(x / 1024)}k` : String(Math.round(x)));
  const SHOW = {
    plain: digits, whole: (x) => String(x), tokens, seconds, share: (x) => `${digits(100 * x)} %`,
    bytes: (x) => scaled(x, 1024, [' B', ' KiB', ' MiB', ' GiB', ' TiB']), rate: (x) => scaled(x, 1000, ['', ' k', ' M', ' G']),
  };

  const shorten = (name) => (name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME - 1)}…` : name);

  // Everything that an axis has to reach.
  const extent = (chart, across) => {
    const reach = [...(across ? chart.x : chart.y).include];
    for (const series of chart.series) {
      for (const point of series.points) {
        const value = across ? point.x : point.y;
        reach.push(value);
        if (across && point.x_half !== undefined) reach.push(value - point.x_half, value + point.x_half);
        if (!across && point.y_range !== undefined) reach.push(...point.y_range);
      }
    }
    return [Math.min(...reach), Math.max(...reach)];
  };

  const powers = (base, steps, low, high) => {
    const found = [];
    for (let power = Math.floor(Math.log(low) / Math.log(base)); base ** power <= high; power += 1) {
      for (const step of steps) {
        const value = step * base ** power;
        if (value >= low && value <= high) found.push(value);
      }
    }
    return found;
  };

  // Round numbers on a logarithmic axis, about half a dozen.
  const roundNumbers = (unit, low, high) => {
    const isBinary = unit === 'tokens' || unit === 'bytes';
    const choices = isBinary
      ? [[2, [1]], [4, [1]], [16, [1]], [64, [1]]]
      : [[10, [1, 1.5, 2, 3, 5, 7]], [10, [1, 2, 5]], [10, [1, 3]], [10, [1]], [100, [1]], [1000, [1]]];
    const most = unit === 'tokens' ? 12 : 9;
    let found = [];
    for (const [base, steps] of choices) {
      found = powers(base, steps, low, high);
      if (found.length <= most) break;
    }
    return found;
  };

  const axis = (chart, across, theme) => {
    const described = across ? chart.x : chart.y;
    const show = SHOW[described.unit];
    const shared = {
      title: { display: described.label !== '', text: described.label, color: theme.pale },
      border: { color: theme.pale },
    };
    const ticks = { color: theme.pale, maxRotation: 0, callback: (value) => show(value) };
    if (described.names) {
      const names = described.names.map(shorten);
      return { ...shared, type: 'linear', min: -0.5, max: names.length - 0.5, reverse: true, grid: { color: theme.rule },
        ticks: { ...ticks, color: theme.ink, stepSize: 1, autoSkip: false, callback: (value) => names[value] ?? '' },
        afterBuildTicks: (scale) => { scale.ticks = names.map((_, value) => ({ value })); } };
    }
    const [low, high] = extent(chart, across);
    if (described.log) {
      const room = across && chart.kind === 'lines' ? 1.15 : Math.max(1.25, (high / low) ** 0.04);
      const [min, max] = [low / room, high * room];
      return { ...shared, type: 'logarithmic', min, max, grid: { color: theme.rule }, ticks: { ...ticks, autoSkipPadding: 8 },
        afterBuildTicks: (scale) => { scale.ticks = roundNumbers(described.unit, min, max).map((value) => ({ value })); } };
    }
    const isBounded = described.include.length > 0;
    const room = isBounded || across && chart.kind === 'lines' ? 0 : (high - low || Math.abs(high) || 1) * 0.05;
    const isWhole = described.unit === 'whole';
    const isLimit = (context) => described.unit === 'share' && Math.abs(context.tick.value - 1) < 1e-9;
    return { ...shared, type: 'linear', suggestedMin: low - room, suggestedMax: high + room, grid: { color: (context) => (isLimit(context) ? theme.pale : theme.rule) },
      ticks: { ...ticks, autoSkipPadding: 12, ...(isWhole ? { precision: 0 } : {}) } };
  };

  const LOOKS = {
    measured: (series, theme, chart) => {
      const colour = series.slot === 0 ? theme.ink : theme.colours[(series.slot - 1) % theme.colours.length];
      const [marker, turn] = MARKERS[series.slot % MARKERS.length];
      const size = marker === 'circle' || marker.startsWith('rect') ? 4 : 5;
      // Of a long curve, every so manieth point has a marker; neighbours' are shifted, so that they do not fall together.
      const every = Math.ceil(series.points.length / 16);
      const isMarked = (i) => every === 1 || i % every === (series.slot * 3) % every;
      return { borderColor: colour, borderWidth: series.slot === 0 ? 2.5 : 1.75, backgroundColor: colour, showLine: chart.kind === 'lines', order: 2,
        pointStyle: marker, pointRotation: turn, pointBorderWidth: 1.75, pointHoverRadius: size + 2,
        pointRadius: (context) => (context.dataIndex === undefined || isMarked(context.dataIndex) ? (chart.kind === 'lines' ? size : size + 2) : 0),
        pointBackgroundColor: series.points.map((point) => (point.reckoned ? theme.paper : colour)),
        segment: { borderDash: (context) => (context.p1.raw.reckoned ? [5, 4] : undefined) } };
    },
    limit: (series, theme, chart) => ({ borderColor: theme.limit, borderWidth: 1.5, backgroundColor: 'transparent', showLine: true, pointRadius: 0, pointHitRadius: 0,
      borderDash: chart.series.filter((other) => other.role === 'limit').indexOf(series) === 0 ? [2, 3] : [8, 3, 2, 3], pointStyle: 'line', order: 3 }),
    front: (series, theme) => ({ borderColor: theme.limit, borderWidth: 1.5, backgroundColor: 'transparent', borderDash: [6, 4], showLine: true, pointRadius: 0, pointHitRadius: 0, pointStyle: 'line', order: 3 }),
    crossing: (series, theme) => ({ borderColor: theme.ink, borderWidth: 1.5, backgroundColor: 'transparent', showLine: false, pointStyle: 'circle', pointRadius: 9, pointHoverRadius: 10, order: 1 }),
    single: (series, theme, chart) => ({ ...LOOKS.measured(series, theme, chart), pointStyle: 'circle', pointRadius: 3, pointHoverRadius: 4,
      pointBackgroundColor: 'transparent', pointBorderWidth: 1, order: 3 }),
  };

  // Bands of curves, below; bars of intervals, above. A chart's own description comes as the plug-in's options.
  const intervals = {
    id: 'intervals',
    beforeDatasetsDraw: (plot, _, { chart }) => { if (chart.kind === 'lines') eachVisible(plot, chart, band); },
    afterDatasetsDraw: (plot, _, { chart }) => { if (chart.kind !== 'lines') eachVisible(plot, chart, bars); },
  };
  const eachVisible = (plot, chart, draw) => {
    plot.ctx.save();
    chart.series.forEach((series, i) => { if (series.role === 'measured' && plot.isDatasetVisible(i)) draw(plot, series, plot.data.datasets[i].borderColor); });
    plot.ctx.restore();
  };
  const band = ({ ctx, scales: { x, y } }, { points }, colour) => {
    const ranged = points.filter((point) => point.y_range !== undefined);
    if (ranged.length < 2) return;
    ctx.beginPath();
    ranged.forEach((point) => ctx.lineTo(x.getPixelForValue(point.x), y.getPixelForValue(point.y_range[1])));
    ranged.reverse().forEach((point) => ctx.lineTo(x.getPixelForValue(point.x), y.getPixelForValue(point.y_range[0])));
    ctx.closePath();
    ctx.globalAlpha = 0.15;
    ctx.fillStyle = colour;
    ctx.fill();
    ctx.globalAlpha = 1;
  };
  const bars = ({ ctx, scales: { x, y } }, { points }, colour) => {
    ctx.strokeStyle = colour;
    ctx.lineWidth = 1.75;
    for (const point of points) {
      const [px, py] = [x.getPixelForValue(point.x), y.getPixelForValue(point.y)];
      if (point.x_half !== undefined) {
        const ends = [point.x - point.x_half, point.x + point.x_half].map((value) => x.getPixelForValue(value));
        stroke(ctx, [[ends[0], py], [ends[1], py]]);
        ends.forEach((end) => stroke(ctx, [[end, py - 5], [end, py + 5]]));
      }
      if (point.y_range !== undefined) {
        const ends = point.y_range.map((value) => y.getPixelForValue(value));
        stroke(ctx, [[px, ends[0]], [px, ends[1]]]);
        ends.forEach((end) => stroke(ctx, [[px - 5, end], [px + 5, end]]));
      }
    }
  };
  const stroke = (ctx, [from, to]) => { ctx.beginPath(); ctx.moveTo(...from); ctx.lineTo(...to); ctx.stroke(); };

  // What the legend names: not single runs, and not rows, which have names of their own.
  const legend = (plot, chart, theme) => plot.data.datasets.map((dataset, datasetIndex) => ({
    datasetIndex, text: dataset.label, fontColor: theme.ink, hidden: !plot.isDatasetVisible(datasetIndex), pointStyle: dataset.pointStyle,
    rotation: dataset.pointRotation, fillStyle: dataset.backgroundColor, strokeStyle: dataset.borderColor, lineWidth: 1.75,
    lineDash: dataset.borderDash?.map((length) => length / 2) ?? [],
  })).filter(({ datasetIndex }) => {
    const { role } = chart.series[datasetIndex];
    return role !== 'single' && !(chart.kind === 'rows' && role === 'measured');
  });

  const said = (chart, item) => {
    const point = item.raw;
    const value = chart.kind === 'rows' ? SHOW[chart.x.unit](point.x) : SHOW[chart.y.unit](point.y);
    const half = point.x_half === undefined ? '' : ` ± ${SHOW[chart.x.unit](point.x_half)}`;
    const speed = chart.kind === 'scatter' ? `, ${SHOW[chart.x.unit](point.x)} tokens/s` : '';
    return ` ${item.dataset.label}: ${value}${half}${speed}${point.reckoned ? ' (reckoned)' : ''}`;
  };

  const options = (chart, theme, isPrinted) => ({
    animation: false, responsive: !isPrinted, maintainAspectRatio: false, parsing: false, devicePixelRatio: Math.max(2, window.devicePixelRatio),
    layout: { padding: { top: 6, right: 14 } },
    interaction: { mode: 'nearest', intersect: true },
    scales: { x: axis(chart, true, theme), y: axis(chart, false, theme) },
    plugins: {
      intervals: { chart },
      legend: {
        position: 'bottom', align: 'start', display: chart.kind !== 'rows' || chart.series.some((series) => series.role === 'limit'),
        labels: { usePointStyle: true, boxHeight: 7, padding: 12, generateLabels: (plot) => legend(plot, chart, theme) },
      },
      tooltip: { callbacks: {
        title: (items) => (chart.kind === 'lines' && items.length > 0 ? `${SHOW[chart.x.unit](items[0].raw.x)} ${chart.x.label}` : ''),
        label: (item) => said(chart, item),
      } },
    },
  });

  const draw = ({ id, chart }, theme, isPrinted) => {
    Chart.getChart(id)?.destroy();
    const datasets = chart.series.map((series) => ({ label: shorten(series.label), data: series.points, ...LOOKS[series.role](series, theme, chart) }));
    const plot = new Chart(document.getElementById(id), { type: 'line', data: { datasets }, options: options(chart, theme, isPrinted), plugins: [intervals] });
    if (isPrinted) plot.resize(PAPER_WIDTH, chart.kind === 'rows' ? 120 + 26 * chart.y.names.length : 380);
  };

  const isDark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : prefersDark.matches);
  const button = document.getElementById('theme');
  const drawAll = (isPrinted) => {
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    const theme = THEMES[isDark() && !isPrinted ? 'dark' : 'light'];
    button.textContent = isDark() ? 'Light' : 'Dark';
    drawings.forEach((drawing) => draw(drawing, theme, isPrinted));
  };

  button.hidden = false;
  button.addEventListener('click', () => { root.dataset.theme = isDark() ? 'light' : 'dark'; drawAll(false); });
  prefersDark.addEventListener('change', () => drawAll(onPaper.matches));
  onPaper.addEventListener('change', () => drawAll(onPaper.matches));
  drawAll(onPaper.matches);
})();

// The checks of run.sh, on the pages in the working folder.
import assert from 'node:assert/strict';
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';

const PAGES = { sweep: 20, compare: 20, real: 30, hostile: 20 };
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });

// A page that is watched: what it asks for, what it complains about.
async function opened(name, options) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 1000 }, offline: true, ...options });
  const page = await context.newPage();
  const [asked, said] = [[], []];
  await page.route('**/*', (route) => (route.request().url().startsWith('file:') ? route.continue() : route.abort()));
  page.on('request', (request) => asked.push(request.url()));
  page.on('console', (message) => said.push(`${message.type()}: ${message.text()}`));
  page.on('pageerror', (error) => said.push(String(error)));
  page.on('dialog', (dialog) => { said.push('a dialog'); dialog.dismiss(); });
  const address = pathToFileURL(`${name}.html`).href;
  await page.goto(address);
  const settled = () => {
    assert.deepEqual(asked.filter((url) => url !== address && !url.startsWith('data:')), [], `${name} asks for something`);
    assert.deepEqual(said, [], `${name} complains`);
  };
  return { page, context, settled };
}

// Charts of a page: how many coloured pixels each has, and whether its ticks and legend lie inside of it.
const charts = (page) => page.evaluate(() => [...document.querySelectorAll('canvas')].map((canvas) => {
  const chart = Chart.getChart(canvas);
  // A copy is read: reading the chart itself often makes the browser complain.
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Set();
  let painted = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 200) {
      painted += 1;
      if (Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]) > 60) colours.add(data[i] >> 5 << 10 | data[i + 1] >> 5 << 5 | data[i + 2] >> 5);
    }
  }
  const ticks = Object.values(chart.scales).map((scale) => scale.ticks.filter((tick) => tick.label).length);
  const { legend } = chart;
  const inside = !legend.options.display || (legend.right <= chart.width + 1 && legend.bottom <= chart.height + 1
    && legend.legendHitBoxes.every((box, i) => legend.legendItems[i].hidden || box.left + box.width <= chart.width + 1));
  return { id: canvas.id, painted, colours: colours.size, ticks, inside, plot: chart.chartArea.height, series: chart.data.datasets.length };
}));

async function allDrawn(page, name, theme) {
  const found = await charts(page);
  assert.equal(found.length, PAGES[name], `${name}: charts`);
  for (const chart of found) {
    const where = `${name}, ${theme}: ${JSON.stringify(chart)}`;
    assert.ok(chart.series > 0 && chart.painted > 1000, where);
    assert.ok(chart.ticks.every((count) => count >= 1) && chart.inside && chart.plot > 60, where);
  }
  assert.ok(found.filter((chart) => chart.colours > 0).length > found.length / 2, `${name}, ${theme}: colours`);
}

const background = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);

for (const name of Object.keys(PAGES)) {
  for (const colorScheme of ['light', 'dark']) {
    const { page, context, settled } = await opened(name, { colorScheme });
    await allDrawn(page, name, colorScheme);
    assert.equal(await background(page), colorScheme === 'dark' ? 'rgb(21, 23, 27)' : 'rgb(255, 255, 255)');
    await page.screenshot({ path: `${name}-${colorScheme}.png`, fullPage: true });
    if (colorScheme === 'dark') {
      await page.click('#theme');
      assert.equal(await background(page), 'rgb(255, 255, 255)', 'the button turns the light on');
      await page.click('#theme');
      await page.emulateMedia({ media: 'print' });
      assert.equal(await background(page), 'rgb(255, 255, 255)', 'paper is white');
      await allDrawn(page, name, 'print');
      assert.equal(await page.isVisible('nav'), false);
      await page.emulateMedia({ media: 'screen' });
      await page.pdf({ path: `${name}.pdf`, format: 'A4', printBackground: false });
    }
    settled();
    await context.close();
  }
  // As wide as a telephone: nothing hangs out at the side.
  const { page, context, settled } = await opened(name, { viewport: { width: 390, height: 800 } });
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth), `${name} is too wide`);
  await page.screenshot({ path: `${name}-narrow.png` });
  settled();
  await context.close();
}

{ // The reader's own copy of the numbers.
  const { page, context } = await opened('sweep', {});
  await page.evaluate(() => document.querySelectorAll('details').forEach((details) => { details.open = true; }));
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('figure a[download] >> nth=0')]);
  const chunks = [];
  for await (const chunk of await download.createReadStream()) chunks.push(chunk);
  assert.equal(Buffer.concat(chunks).toString(), await page.locator('.csv pre').first().textContent());
  await context.close();
}

{ // Text that means harm is shown and does nothing.
  const { page, context, settled } = await opened('hostile', {});
  await page.waitForTimeout(300);
  assert.equal(await page.evaluate(() => window.harmed), undefined);
  assert.equal(await page.locator('main img').count(), 0);
  assert.ok((await page.locator('main').innerText()).includes('<img src=x onerror='));
  settled();
  await context.close();
}

{ // Without scripts the tables are there.
  const { page, context } = await opened('sweep', { javaScriptEnabled: false });
  assert.ok(await page.locator('table').first().isVisible());
  await context.close();
}

await browser.close();
console.log(`${Object.keys(PAGES).length} pages: light, dark, print, narrow, download, harm, no scripts: as they should be`);

// r2rt's network with batch norm, before and after the fix, computed as TensorFlow does from the values that training left.
'use strict';
const EPSILON = 1e-3, LARGE_BATCH = 60;

// --- The networks ---

function bytesOf(packed) {
  return Uint8Array.from(atob(packed.values), each => each.charCodeAt(0));
}

function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function arrayOf(packed) {
  const view = new DataView(bytesOf(packed).buffer);
  return { shape: packed.shape, values: Float64Array.from({ length: view.byteLength / 2 }, (_, i) => float16(view.getUint16(2 * i, true))) };
}

function product(row, { shape: [rows, columns], values }) {
  const out = new Float64Array(columns);
  for (let i = 0; i < rows; i++) {
    if (row[i] === 0) continue;  // most of a digit's pixels
    for (let j = 0; j < columns; j++) out[j] += row[i] * values[i * columns + j];
  }
  return out;
}

// The moments over the batch: the variance is the biased one, as TensorFlow normalizes with.
function moments(rows) {
  const mean = rows[0].map((_, j) => rows.reduce((sum, row) => sum + row[j], 0) / rows.length);
  const variance = mean.map((m, j) => rows.reduce((sum, row) => sum + (row[j] - m) ** 2, 0) / rows.length);
  return [mean, variance];
}

function normalized(network, layer, rows) {
  const value = name => network[`bn${layer}/${name}`].values;
  const moving = `bn${layer}/moving_mean` in network;  // the network before the fix has no moving statistics
  const [mean, variance] = moving ? [value('moving_mean'), value('moving_variance')] : moments(rows);
  const gamma = value('gamma'), beta = value('beta');
  return rows.map(row => row.map((z, j) => gamma[j] * (z - mean[j]) / Math.sqrt(variance[j] + EPSILON) + beta[j]));
}

// The logits of a batch, from the sums of its first layer: those depend on the image alone, and are computed once.
function logits(network, rows) {
  let layer = 1;
  for (; `w${layer + 1}` in network; layer++) {
    const hidden = normalized(network, layer, rows).map(row => row.map(z => 1 / (1 + Math.exp(-z))));
    rows = hidden.map(row => product(row, network[`w${layer + 1}`]));
  }
  const bias = network[`b${layer}`] ? network[`b${layer}`].values : null;
  return bias ? rows.map(row => row.map((z, j) => z + bias[j])) : rows;
}

function softmax(row) {
  const largest = Math.max(...row), powers = [...row].map(z => Math.exp(z - largest));
  const total = powers.reduce((sum, each) => sum + each);
  return powers.map(each => each / total);
}

const argmax = row => row.indexOf(Math.max(...row));

const data = JSON.parse(document.getElementById('demo-data').textContent);
const [COUNT, HEIGHT, WIDTH] = data.images.shape, PIXELS = HEIGHT * WIDTH, LABELS = data.labels;
const images = (bytes => Array.from({ length: COUNT }, (_, i) => Float64Array.from(bytes.subarray(i * PIXELS, (i + 1) * PIXELS), each => each / 255)))(bytesOf(data.images));
const networks = Object.fromEntries(Object.entries(data.networks).map(([when, arrays]) =>
  [when, Object.fromEntries(Object.entries(arrays).map(([name, packed]) => [name, arrayOf(packed)]))]));
const firstSums = Object.fromEntries(Object.keys(networks).map(when => [when, images.map(image => product(image, networks[when].w1))]));

// The logits of one image in a batch of that size. The others are the images that follow `place` in the hundred.
function ask(when, size, place, image = null) {
  const first = image ? product(image, networks[when].w1) : firstSums[when][place];
  const others = Array.from({ length: size - 1 }, (_, i) => firstSums[when][(place + 1 + i) % COUNT]);
  return logits(networks[when], [first, ...others])[0];
}

// --- What the reader sees ---

const pad = document.getElementById('pad'), pen = pad.getContext('2d', { willReadFrequently: true });
const state = { place: 0, drawn: null, size: 1, x: 98, y: 60 };
const rights = {};

function show() {
  for (const when of Object.keys(networks)) {
    const panel = document.getElementById(when), probabilities = softmax(ask(when, state.size, state.place, state.drawn));
    const answer = argmax(probabilities), right = state.drawn ? null : answer === LABELS[state.place];
    panel.querySelector('.class').textContent = answer;
    panel.dataset.right = right;
    panel.querySelector('.verdict').textContent = right === null ? 'is its answer to your drawing' : right ? '✓ right' : `✗ wrong, it is a ${LABELS[state.place]}`;
    [...panel.querySelectorAll('.bars li')].forEach((bar, digit) => {
      bar.style.setProperty('--share', probabilities[digit]);
      bar.classList.toggle('top', digit === answer);
      bar.lastChild.textContent = `${(100 * probabilities[digit]).toFixed(1)}%`;
    });
  }
  rights[state.size] ||= Object.keys(networks).map(when => images.filter((_, i) => argmax(ask(when, state.size, i)) === LABELS[i]).length);
  const [before, after] = rights[state.size];
  document.getElementById('score').textContent =
    `Asked ${state.size === 1 ? 'one at a time' : `each among ${state.size - 1} others`}, of these ${COUNT} images the first network has ${before} right and the second ${after}.`;
}

function paint(context, image, size) {
  const small = new OffscreenCanvas(WIDTH, HEIGHT), inside = small.getContext('2d'), pixels = inside.createImageData(WIDTH, HEIGHT);
  image.forEach((value, i) => pixels.data.set([255 - 255 * value, 255 - 255 * value, 255 - 255 * value, 255], 4 * i));
  inside.putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, size, size);
}

function pick(place, focus = false) {
  Object.assign(state, { place, drawn: null });
  buttons.forEach((button, i) => {
    button.setAttribute('aria-checked', i === place);
    button.tabIndex = i === place ? 0 : -1;
  });
  if (focus) buttons[place].focus();
  paint(pen, images[place], pad.width);
  show();
}

const buttons = images.map((image, i) => {
  const button = document.createElement('button'), picture = document.createElement('canvas');
  Object.assign(picture, { width: WIDTH, height: HEIGHT });
  paint(picture.getContext('2d'), image, WIDTH);
  button.type = 'button';
  button.setAttribute('role', 'radio');
  button.setAttribute('aria-label', `image ${i + 1}, a ${LABELS[i]}`);
  button.append(picture);
  button.addEventListener('click', () => pick(i));
  document.getElementById('images').append(button);
  return button;
});

document.getElementById('images').addEventListener('keydown', event => {
  const columns = buttons.filter(each => each.offsetTop === buttons[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (!step) return;
  event.preventDefault();
  pick((state.place + step + COUNT) % COUNT, true);
});

for (const radio of document.getElementsByName('batch')) {
  radio.addEventListener('change', () => {
    state.size = Number(document.querySelector('[name=batch]:checked').value);
    show();
  });
}

for (const list of document.querySelectorAll('.bars')) {
  for (let digit = 0; digit < 10; digit++) {
    const bar = list.appendChild(document.createElement('li'));
    bar.append(Object.assign(document.createElement('span'), { className: 'digit', textContent: digit }));
    bar.append(Object.assign(document.createElement('i'), { className: 'track' }));
    bar.append(Object.assign(document.createElement('span'), { className: 'share' }));
  }
}

// --- Drawing ---

function clear() {
  pen.fillStyle = 'white';
  pen.fillRect(0, 0, pad.width, pad.height);
  for (const button of buttons) button.setAttribute('aria-checked', false);
  state.drawn = new Float64Array(PIXELS);
}

function line(x, y, draws) {
  if (draws) {
    if (!state.drawn) clear();
    Object.assign(pen, { lineWidth: 15, lineCap: 'round', strokeStyle: 'black' });
    pen.beginPath();
    pen.moveTo(state.x, state.y);
    pen.lineTo(x, y);
    pen.stroke();
  }
  Object.assign(state, { x, y });
}

// As MNIST's images were made: the ink's box is scaled to 20 of 28 pixels, and its centre of mass put into the middle.
function read() {
  const ink = pen.getImageData(0, 0, pad.width, pad.height).data.filter((_, i) => i % 4 === 0).map(each => 255 - each);
  let [left, right, top, bottom, sum, x, y] = [pad.width, -1, pad.height, -1, 0, 0, 0];
  ink.forEach((value, i) => {
    if (value < 32) return;
    const column = i % pad.width, row = Math.floor(i / pad.width);
    [left, right, top, bottom] = [Math.min(left, column), Math.max(right, column), Math.min(top, row), Math.max(bottom, row)];
    [sum, x, y] = [sum + value, x + value * column, y + value * row];
  });
  if (!sum) return;
  const scale = WIDTH * 20 / 28 / Math.max(right - left + 1, bottom - top + 1);
  const small = new OffscreenCanvas(WIDTH, HEIGHT), context = small.getContext('2d');
  context.fillStyle = 'white';
  context.fillRect(0, 0, WIDTH, HEIGHT);
  context.imageSmoothingQuality = 'high';
  context.drawImage(pad, WIDTH / 2 - scale * x / sum, HEIGHT / 2 - scale * y / sum, scale * pad.width, scale * pad.height);
  const pixels = context.getImageData(0, 0, WIDTH, HEIGHT).data;
  state.drawn = Float64Array.from({ length: PIXELS }, (_, i) => 1 - pixels[4 * i] / 255);
  show();
}

const positionOf = event => [event.offsetX * pad.width / pad.clientWidth, event.offsetY * pad.height / pad.clientHeight];
pad.addEventListener('pointerdown', event => {
  pad.setPointerCapture(event.pointerId);
  line(...positionOf(event), false);
  line(...positionOf(event), true);
});
pad.addEventListener('pointermove', event => event.buttons && line(...positionOf(event), true));
pad.addEventListener('pointerup', read);
pad.addEventListener('pointercancel', read);
pad.addEventListener('keydown', event => {
  const [dx, dy] = { ArrowRight: [7, 0], ArrowLeft: [-7, 0], ArrowDown: [0, 7], ArrowUp: [0, -7] }[event.key] || [0, 0];
  if (event.key === 'Delete' || event.key === 'Backspace') clear();
  if (!dx && !dy) return;
  event.preventDefault();
  line(Math.min(Math.max(state.x + dx, 8), pad.width - 8), Math.min(Math.max(state.y + dy, 8), pad.height - 8), event.shiftKey);
  if (event.shiftKey) read();
});
document.getElementById('clear').addEventListener('click', () => {
  clear();
  pad.focus();
});

pick(0);

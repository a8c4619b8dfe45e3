// Added to the report by test_report_page.py: uses the page as a reader does, and puts what it finds into the frame around it.
'use strict';
const byId = id => document.getElementById(id);
const shownClaims = () => [...document.querySelectorAll('details.claim')].filter(each => !each.hidden).map(each => each.id);
const answersNow = () => Object.fromEntries(['before', 'after'].map(when => [when, byId(when).querySelector('.class').textContent]));
const failures = [];
addEventListener('error', event => failures.push(event.message));
addEventListener('securitypolicyviolation', event => failures.push(event.blockedURI));

function choose(radio) {
  radio.checked = true;
  radio.dispatchEvent(new Event('change'));
}

function press(target, key, options = {}) {
  target.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true, ...options }));
}

function contrast(text, ground) {
  const light = colour => {
    const parts = colour.match(/[\d.]+/g).slice(0, 3).map(each => each / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const [dark, bright] = [light(text), light(ground)].sort((a, b) => a - b);
  return (bright + 0.05) / (dark + 0.05);
}

function groundOf(element) {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (!colour.endsWith(', 0)')) return colour;
  }
  return 'rgb(255, 255, 255)';
}

function measure() {
  const found = { at_start: shownClaims(), answers: {}, logits: {}, inner_width: innerWidth };
  for (const when of ['before', 'after']) {
    found.logits[when] = Object.fromEntries([1, 60].map(size => [size, images.map((_, place) => [...ask(when, size, place)])]));
  }
  for (const radio of document.getElementsByName('batch')) {
    choose(radio);
    found.answers[radio.value] = answersNow();
  }
  choose(document.querySelector('[name=batch][value="1"]'));

  press(byId('images'), 'ArrowRight');
  found.keyboard = { right: state.place };
  press(byId('images'), 'ArrowDown');
  found.keyboard.down = state.place;
  found.keyboard.focused = buttons.indexOf(document.activeElement);
  byId('clear').click();
  for (let i = 0; i < 14; i++) press(byId('pad'), 'ArrowDown', { shiftKey: true });
  found.drawn = answersNow();

  byId('document').value = 'flags';
  byId('document').dispatchEvent(new Event('input'));
  found.filtered = { shown: shownClaims().sort(), address: location.hash };

  for (const each of document.querySelectorAll('details')) each.open = true;
  const scrolls = element => element.closest('.wide, #images');
  found.overflowing = [...document.querySelectorAll('body *')]
    .filter(each => each.getBoundingClientRect().right > innerWidth + 0.5 && !scrolls(each)).map(each => each.outerHTML.slice(0, 80));
  if (document.documentElement.scrollWidth > innerWidth) found.overflowing.push('page');
  found.faint = [...new Set([...document.querySelectorAll('body *')]
    .filter(each => [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) && each.checkVisibility() && !each.closest('script'))
    .filter(each => contrast(getComputedStyle(each).color, groundOf(each)) < 4.5).map(each => each.outerHTML.slice(0, 80)))];
  found.requests = performance.getEntriesByType('resource').map(each => each.name).filter(each => !each.startsWith('data:'));
  for (const each of document.querySelectorAll('details')) each.open = false;

  location.hash = '#r2rt-12';
  setTimeout(() => {
    found.linked = Object.fromEntries([...document.querySelectorAll('details[open]')].map(each => [each.id, !each.hidden]));
    found.errors = failures;
    const written = parent.document.createElement('pre');
    written.textContent = JSON.stringify(found);
    parent.document.body.append(written);
  }, 100);
}

setTimeout(measure, 100);

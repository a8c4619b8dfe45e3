// The claims' filters, kept in the address as #claims?document=r2rt&verdict=holds&words=…, and links that open a claim.
'use strict';
const filters = ['document', 'verdict', 'words'].map(id => document.getElementById(id));
const claimRows = [...document.querySelectorAll('details.claim')];

function filterClaims() {
  const [key, verdict, words] = filters.map(each => each.value);
  let shown = 0;
  for (const row of claimRows) {
    const fits = (!key || row.dataset.document === key) && (!verdict || row.dataset.verdict === verdict)
      && row.textContent.toLowerCase().includes(words.toLowerCase());
    row.hidden = !fits;
    shown += fits;
  }
  document.getElementById('shown').textContent = `${shown} of ${claimRows.length}`;
}

function keepFilters() {
  const chosen = new URLSearchParams(filters.filter(each => each.value).map(each => [each.id, each.value]));
  history.replaceState(null, '', '#claims' + (String(chosen) && '?' + chosen));
  filterClaims();
}

function followAddress() {
  const [place, query] = decodeURI(location.hash.slice(1)).split('?');
  if (place === 'claims') {
    const chosen = new URLSearchParams(query);
    for (const each of filters) each.value = chosen.get(each.id) || '';
  }
  filterClaims();
  const target = document.getElementById(place);
  if (target && claimRows.includes(target)) {
    target.hidden = false;  // a link to a claim shows it, whatever the filters are
    target.open = true;
  }
  if (target && (query || claimRows.includes(target))) target.scrollIntoView();
}

for (const each of filters) each.addEventListener('input', keepFilters);
addEventListener('hashchange', followAddress);
followAddress();

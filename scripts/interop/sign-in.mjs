// A person at the provider's pages: opens an authorization URL, signs in, consents, and follows every redirect, by form
// posts and a cookie jar alone.
//
//   node sign-in.mjs AUTHORIZATION_URL [STOP_AT]
//
// Prints where it ended: the first redirect that starts with STOP_AT, not followed; else the last page, which answered.
// The provider's pages are those of oidc-provider's devInteractions: one form, whose hidden field `prompt` says whether
// it is the `login` page (any login and password will do) or the `consent` page.

import { pathToFileURL } from 'node:url';

const MOST_STEPS = 20;

/** Signs `login` in at `authorizationUrl` and returns where the browser ended. */
export async function signIn(authorizationUrl, { stopAt, login = 'ada' } = {}) {
  const providerOrigin = new URL(authorizationUrl).origin;
  const cookies = new Map();
  let url = authorizationUrl;
  let form = null;
  for (let step = 0; step < MOST_STEPS; step += 1) {
    const mine = new URL(url).origin === providerOrigin;
    const headers = mine && cookies.size > 0 ? { cookie: [...cookies].map((pair) => pair.join('=')).join('; ') } : {};
    const answer = await fetch(url, { method: form ? 'POST' : 'GET', body: form, headers, redirect: 'manual' });
    if (mine) for (const line of answer.headers.getSetCookie()) keep(cookies, line);
    const page = await answer.text();
    const location = answer.headers.get('location');
    if (location) {
      url = new URL(location, url).href;
      form = null;
      if (stopAt && url.startsWith(stopAt)) return url;
    } else if (!answer.ok) {
      throw new Error(`${new URL(url).pathname} answered ${answer.status}`);
    } else if (mine) {
      ({ url, form } = fill(page, url, login));
    } else {
      return url;
    }
  }
  throw new Error(`no end after ${MOST_STEPS} pages`);
}

function keep(cookies, line) {
  const [name, value] = line.split(';')[0].split(/=(.*)/s);
  if (value === '' || /expires=Thu, 01 Jan 1970/i.test(line)) cookies.delete(name);
  else cookies.set(name, value);
}

function fill(page, url, login) {
  const action = page.match(/<form[^>]*\baction="([^"]+)"/)?.[1];
  const prompt = page.match(/name="prompt" value="([^"]+)"/)?.[1];
  if (!action || !prompt) throw new Error(`no form to fill at ${new URL(url).pathname}`);
  const form = new URLSearchParams({ prompt });
  if (prompt === 'login') {
    form.set('login', login);
    form.set('password', 'any');
  }
  return { url: new URL(action, url).href, form };
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [authorizationUrl, stopAt] = process.argv.slice(2);
  console.log(await signIn(authorizationUrl, { stopAt }));
}

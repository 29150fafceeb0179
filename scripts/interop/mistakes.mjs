import { PROVIDER, metadata, pause, withWallet } from './wallet.mjs';
const cases = {
  'wrong client secret': { secret: 'not-the-secret' },
  'wrong token URL port': { '--token-url': metadata.token_endpoint.replace(/:\d+/, ':9') },
  'wrong issuer': { '--issuer': 'http://127.0.0.1:9' },
  'missing offline_access': { scopes: ['openid', 'profile', 'email'] },
  'userinfo without openid': { scopes: ['offline_access'] },
  'wrong userinfo path': { '--userinfo-url': metadata.userinfo_endpoint + 'x' },
};
await withWallet(async (wallet) => {
  for (const [name, changed] of Object.entries(cases)) {
    await wallet.createProvider(changed);
    const before = wallet.log.length;
    const linked = await wallet.link('alice', '--timeout', '10s');
    console.log(`-- ${name}: exit ${linked.code}\n${linked.err.replace(/^\n?Open[^]*?\n\n\s+http\S+\n*/m, '')}\n   out ${linked.out.slice(0, 60)}\n   browser ${linked.browser?.slice(0, 120)}`);
    for (const l of wallet.log.slice(before)) console.log('   log', JSON.stringify(l));
    if (linked.code === 0) {
      for (const s of [0, 15]) { await pause(s * 1000); const t = await wallet.run(['token', 'get', 'alice', PROVIDER]); console.log('   get after', s, t.code, t.err); }
      await wallet.must(['accounts', 'unlink', JSON.parse(linked.out).id]);
    }
    await wallet.must(['providers', 'delete', PROVIDER]);
  }
});

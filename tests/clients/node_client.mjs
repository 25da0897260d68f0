// Echoes through wshd with the npm package ws: node_client.mjs ADDRESS|wss://ADDRESS [VARIANT]
//
// Random messages of 0 bytes to 1 MiB, whole and in fragments, with pings between, without compression and with
// each variant of permessage-deflate. Prints the number of messages of each variant; any difference is an error.
// The package is looked for in $WSHD_NODE_MODULES.

import { createRequire } from 'node:module';

const require = createRequire(process.env.WSHD_NODE_MODULES + '/');
const WebSocket = require('ws');

const address = process.argv[2].includes('://') ? process.argv[2] : `ws://${process.argv[2]}`;
const sizes = [0, 1, 63, 64, 125, 126, 127, 1000, 65535, 65536, 300_000, 1 << 20];
const offers = {
  'none': false,
  'plain': {},
  'window bits 9': { serverMaxWindowBits: 9, clientMaxWindowBits: 9 },
  'window bits 15 and 10': { serverMaxWindowBits: 15, clientMaxWindowBits: 10 },
  'server without takeover': { serverNoContextTakeover: true },
  'client without takeover': { clientNoContextTakeover: true },
  'both without takeover': { serverNoContextTakeover: true, clientNoContextTakeover: true },
};

// xorshift32: the same numbers in each run.
let state = 0x9e3779b9;
function random(below) {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) % below;
}

function payload(size) {
  switch (random(3)) {
    case 0: return Buffer.from({ length: size }, () => random(256));
    case 1: return Buffer.alloc(size, 'abcdefg');
    default: return Array.from({ length: size >> 1 }, () => 'aж€𝄞 '.at(random(4))).join('').toWellFormed();
  }
}

function once(client, event) {
  return new Promise((resolve, reject) => {
    const failed = (...why) => reject(new Error(`expected ${event}: ${why.join(' ')}`));
    client.once('error', failed);
    client.once('close', failed);
    client.once(event, (...values) => {
      client.off('error', failed);
      client.off('close', failed);
      resolve(values);
    });
  });
}

async function exchange(handler, offer) {
  const options = { perMessageDeflate: offer && { threshold: 0, ...offer }, maxPayload: 0 };
  const client = new WebSocket(`${address}/${handler}`, options);
  await once(client, 'open');
  const agreed = client.extensions;
  if (Boolean(offer) !== agreed.startsWith('permessage-deflate')) throw new Error(`agreed on "${agreed}"`);
  let count = 0;
  for (const size of [...sizes, ...Array.from({ length: 8 }, () => random(1 << 20))]) {
    const message = payload(size);
    const binary = typeof message !== 'string';
    const answer = once(client, 'message');
    const pong = once(client, 'pong');
    const noise = Buffer.from({ length: random(126) }, () => random(256));
    if (random(2) && message.length > 3) {
      const at = 1 + random(message.length - 2);
      // A string is cut between characters here: ws takes each piece as a text of its own.
      const pieces = [message.slice(0, at), message.slice(at)];
      const cut = !binary && /[\ud800-\udbff]$/.test(pieces[0]);
      if (cut) { pieces[0] += pieces[1][0]; pieces[1] = pieces[1].slice(1); }
      client.send(pieces[0], { fin: false, binary });
      client.ping(noise);
      client.send(pieces[1], { fin: true, binary });
    } else {
      client.send(message, { binary });
      client.ping(noise);
    }
    const [[data, isBinary], [echo]] = await Promise.all([answer, pong]);
    if (isBinary !== binary || !data.equals(Buffer.from(message))) throw new Error(`${handler}: message of ${size}`);
    if (!echo.equals(noise)) throw new Error('the pong is another');
    count += 1;
    // The server allows 20 pings in a second.
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const closed = new Promise((resolve) => client.once('close', resolve));
  client.close(1000);
  const code = await closed;
  if (code !== 1000) throw new Error(`closed with ${code}`);
  return count;
}

for (const [name, offer] of Object.entries(offers)) {
  if (process.argv[3] && process.argv[3] !== name) {
    continue;
  }
  for (const handler of ['echo', 'echo_blocking']) {
    console.log(`${name}, ${handler}: ${await exchange(handler, offer)}`);
  }
}

// WebSockets over HTTP/2 with Node's http2, an extended CONNECT each: http2_client.mjs https://ADDRESS
//
// Opens ten on one connection, sends each a message in masked frames and expects it back. Prints the number of echoes.

import http2 from 'node:http2';

const session = http2.connect(process.argv[2], { settings: { enableConnectProtocol: true } });
session.on('error', (error) => {
  console.error(error);
  process.exit(1);
});

function frame(text) {
  const payload = Buffer.from(text);
  const mask = Buffer.from([1, 2, 3, 4]);
  const masked = payload.map((byte, at) => byte ^ mask[at % 4]);
  return Buffer.concat([Buffer.from([0x81, 0x80 | payload.length]), mask, masked]);
}

function echo(text) {
  return new Promise((resolve, reject) => {
    const stream = session.request({
      ':method': 'CONNECT',
      ':protocol': 'websocket',
      ':path': '/echo',
      'sec-websocket-version': '13',
      'sec-websocket-protocol': 'echo',
    });
    let received = Buffer.alloc(0);
    stream.on('error', reject);
    stream.on('response', (headers) => {
      if (headers[':status'] !== 200) {
        reject(new Error(`status ${headers[':status']}`));
      }
      stream.write(frame(text));
    });
    stream.on('data', (data) => {
      received = Buffer.concat([received, data]);
      if (received.length === 2 + text.length) {
        stream.write(Buffer.from([0x88, 0x80, 0, 0, 0, 0]));
      }
    });
    stream.on('end', () => {
      stream.end();
      resolve(received.subarray(2, 2 + text.length).toString() === text);
    });
  });
}

session.on('remoteSettings', async (settings) => {
  if (!settings.enableConnectProtocol) {
    throw new Error('no extended CONNECT');
  }
  const echoes = await Promise.all(Array.from({ length: 10 }, (_, number) => echo(`message ${number}`)));
  console.log(echoes.filter(Boolean).length);
  session.close();
});

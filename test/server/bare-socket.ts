/** Requests as bytes, for what no HTTP client would send or leave undone. */
import { connect, type Socket } from 'node:net';

export interface BareSocket {
  readonly socket: Socket;
  /** What has come back so far. */
  readonly heard: () => string;
  /** All that came back, once the connection is closed. */
  readonly closed: Promise<string>;
}

/** Connects and sends `bytes`; the connection stays open. */
export function openSocket(url: string, bytes: string | Buffer): BareSocket {
  const { hostname, port } = new URL(url);
  let answer = '';
  const socket = connect(Number(port), hostname, () => void socket.write(bytes));
  socket.on('data', (chunk: Buffer) => {
    answer += chunk.toString();
  });
  // The server may close while we still send.
  socket.on('error', () => {});
  const closed = new Promise<string>((resolve) => socket.on('close', () => resolve(answer)));
  return { socket, heard: () => answer, closed };
}

/** A POST of JSON as text, with its length. */
export function postText(path: string, body: string, headers = ''): string {
  const length = Buffer.byteLength(body);
  return `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${headers}content-length: ${length}\r\n\r\n${body}`;
}

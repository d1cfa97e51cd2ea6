/** What arrives and is no HTTP, or too slowly: answered on the bare socket, since no request object exists. */
import { STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import { perigeeError } from '../errors.ts';
import { openAi } from './dialects.ts';

/** Node's codes for these, and the status and reason a client is told. */
const answers: Readonly<Record<string, readonly [status: number, why: string]>> = {
  ERR_HTTP_REQUEST_TIMEOUT: [408, 'it did not arrive in time'],
  HPE_HEADER_OVERFLOW: [431, 'its headers are too large'],
};

export function answerBrokenRequest(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const [status, why] = answers[error.code ?? ''] ?? [400, 'it is not valid HTTP'];
  const body = JSON.stringify(openAi.errorBody(perigeeError('REQUEST_MALFORMED', { why })));
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\ncontent-type: application/json; charset=utf-8\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  );
}

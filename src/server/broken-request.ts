/** What arrives and is no HTTP, or too slowly: answered on the bare socket, since no request object exists. */
import { STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import { type PerigeeError, perigeeError } from '../errors.ts';
import { openAi } from './dialects.ts';

/** What Node's codes for these mean to a client. */
const meanings: Readonly<Record<string, PerigeeError>> = {
  ERR_HTTP_REQUEST_TIMEOUT: perigeeError('REQUEST_TOO_SLOW', {}),
  HPE_HEADER_OVERFLOW: perigeeError('HEADERS_TOO_LARGE', {}),
};
const noHttp = perigeeError('REQUEST_MALFORMED', { why: 'it is not valid HTTP' });

export function answerBrokenRequest(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const meaning = meanings[error.code ?? ''] ?? noHttp;
  const { status } = meaning;
  const body = JSON.stringify(openAi.errorBody(meaning));
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\ncontent-type: application/json; charset=utf-8\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  );
}

/** Reads request bodies: JSON objects only, of bounded size and depth, without keys that could reach a prototype. */
import type { FastifyInstance } from 'fastify';
import { withExactTools } from '../api/openai/to-request.ts';
import { perigeeError } from '../errors.ts';

/** A prompt of a full 256k context is about 1 MB; a long tool history with its schemas some more. */
export const bodyLimit = 32 * 2 ** 20;

/** Tool schemas nest a few dozen levels at most; what walks them afterwards is recursive. */
const depthLimit = 200;

/** Makes the app read application/json under these rules, and refuse every other type of body. */
export function readJsonBodies(app: FastifyInstance): void {
  // Fastify's own parser, which refuses __proto__ and constructor.prototype as keys.
  const parse = app.getDefaultJsonParser('error', 'error');
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (request, text: string, done) => {
    if (exceedsDepth(text)) {
      done(perigeeError('BODY_TOO_DEEP', { limit: depthLimit }));
      return;
    }
    parse(request, text, (error, body) => {
      if (error !== null) done(perigeeError('BODY_NOT_JSON', { why: error.message }));
      else if (isObject(body)) done(null, withExactTools(body, text));
      else done(perigeeError('BODY_NOT_JSON', { why: 'it is not a JSON object' }));
    });
  });
  app.addContentTypeParser('*', (request, _payload, done) => {
    done(perigeeError('BODY_WRONG_TYPE', { type: request.headers['content-type'] ?? 'nothing' }));
  });
}

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const quote = 0x22;
const backslash = 0x5c;
const openBracket = 0x5b;
const openBrace = 0x7b;
const closeBracket = 0x5d;
const closeBrace = 0x7d;

/** Looks at the brackets outside of strings, before anything is parsed. */
function exceedsDepth(text: string): boolean {
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === quote) {
      i = endOfString(text, i);
    } else if (code === openBracket || code === openBrace) {
      if (++depth > depthLimit) return true;
    } else if (code === closeBracket || code === closeBrace) {
      depth--;
    }
  }
  return false;
}

/** Index of the quote that closes the string opened at `start`, or the end of the text. */
function endOfString(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); end >= 0; end = text.indexOf('"', end + 1)) {
    let slashes = 0;
    while (text.charCodeAt(end - 1 - slashes) === backslash) slashes++;
    if (slashes % 2 === 0) return end;
  }
  return text.length;
}

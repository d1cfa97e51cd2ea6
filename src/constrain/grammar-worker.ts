/** The worker that holds the grammars: reads the vocabulary once, then does what constraints.ts asks, in order. */
import { parentPort, workerData } from 'node:worker_threads';
import { PerigeeError, perigeeError } from '../errors.ts';
import { openTokenizer } from '../tokenizer/open.ts';
import { Answer, compileArguments } from './answer.ts';
import { Grammars } from './grammars.ts';
import { TokenTable } from './masks.ts';
import type { ToHost, ToWorker } from './messages.ts';
import { GrammarLibrary } from './xgrammar.ts';

const port = parentPort!;
const send = (message: ToHost) => port.postMessage(message);
const tokenizer = await openTokenizer((workerData as { tokenizer: string }).tokenizer);
const tokens = new TokenTable(tokenizer);
const grammars = new Grammars(await GrammarLibrary.load(tokenizer), tokens);
const answers = new Map<number, Answer>();

async function hear(message: ToWorker): Promise<void> {
  const { id } = message;
  try {
    if (message.type === 'close') {
      answers.get(id)?.close();
      answers.delete(id);
      return;
    }
    if (message.type === 'compile') {
      await compileArguments(message.tool, grammars);
      return send({ type: 'compiled', id });
    }
    if (message.type === 'open') {
      answers.get(id)?.close();
      const beginArguments = (tool: string) => send({ type: 'arguments', id, tool });
      const answer = await Answer.begin({ spec: message.spec, tokens, grammars, beginArguments });
      send({ type: 'opened', id, unenforced: answer.unenforced });
      for (const token of message.tokens) await answer.accept(token);
      answers.set(id, answer);
    } else {
      await answers.get(id)?.accept(message.token);
    }
    const mask = (await answers.get(id)?.mask()) ?? null;
    send({ type: 'mask', id, mask });
  } catch (error) {
    const known = error instanceof PerigeeError ? error : perigeeError('CONSTRAINT_FAILED', { what: String(error) });
    send({ type: 'failed', id, code: known.code, message: known.message, param: known.param });
  }
}

// One after the other: the library's calls are asynchronous, and tokens of an answer must not overtake each other.
let last: Promise<void> = Promise.resolve();
port.on('message', (message: ToWorker) => {
  last = last.then(() => hear(message));
});
send({ type: 'ready' });

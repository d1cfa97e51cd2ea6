/** A serving process for tests that signal one: prints its address and the engine's process id, then serves until told to end. */
import { untilSignalled } from '../../src/server/lifecycle.ts';
import { silent, startRemote } from './harness.ts';

const { url, server, engine, remote } = await startRemote();
process.stdout.write(`${JSON.stringify({ url, engine: remote.pid })}\n`);
await untilSignalled(server, { engine, logger: silent, drainMilliseconds: 60_000 });
process.exit(0);

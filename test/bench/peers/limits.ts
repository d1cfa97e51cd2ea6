/** Prints what `argv[2]` threads read and multiply at most, as JSON: in a process of its own, so that its memory goes again. */
import { measureMachine } from '../../../src/cli/machine-limits.ts';

process.stdout.write(JSON.stringify(await measureMachine(Number(process.argv[2]), 'relaxed')));

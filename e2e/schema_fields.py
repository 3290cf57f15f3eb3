"""What of ECS and OCSF the project's records use, for schemas.py: a field that is not here fails the tests."""
IP = "^[0-9A-Fa-f]*[.:][0-9A-Fa-f.:]+$"

# ECS fields, with the shell's braces. Each must exist.
PEOPLE = "{user,group,real_user,real_group,saved_user,saved_group}.{id,name}"
PROCESS = ("{pid,vpid,entity_id,name,title,executable,args,args_count,command_line,working_directory,start,thread.id,"
           f"thread.name,hash.sha256,{PEOPLE}}}")
ECS_FIELDS = f"""
    @timestamp message tags ecs.version
    event.{{action,category,code,created,dataset,duration,end,id,ingested,kind,module,original,outcome,provider,reason}}
    event.{{reference,risk_score,sequence,severity,start,timezone,type,url}}
    file.{{accessed,attributes,created,ctime,device,directory,extension,gid,group,hash.sha256,inode,mime_type,mode,mtime}}
    file.{{name,owner,path,size,target_path,type,uid}}
    process.{PROCESS} process.parent.{PROCESS}
    user.{{domain,id,name}} user.group.{{id,name}} user.effective.{{id,name}}
    container.{{id,name,runtime,image.name,image.tag,image.hash.all,security_context.privileged}}
    orchestrator.{{api_version,namespace,organization,type,cluster.id,cluster.name,cluster.url,cluster.version}}
    orchestrator.resource.{{id,name,type,ip,label,annotation,parent.type}}
    rule.{{author,category,description,id,license,name,reference,ruleset,uuid,version}}
    threat.framework threat.{{tactic,technique,technique.subtechnique}}.{{id,name,reference}}
    host.{{architecture,boot.id,hostname,id,ip,name,pid_ns_ino,type,uptime}}
    {{host,observer}}.os.{{family,full,kernel,name,platform,type,version}}
    observer.{{hostname,ip,name,product,serial_number,type,vendor,version}}
    agent.{{build.original,ephemeral_id,id,name,type,version}}
    data_stream.{{dataset,namespace,type}} related.{{hash,hosts,ip,user}} error.{{code,id,message,stack_trace,type}}
"""
# The length of a keyword is what Elastic's `ignore_above` counts: characters.
ECS_TYPES = {
    "keyword": {"type": "string", "maxLength": 1024},
    "constant_keyword": {"type": "string", "pattern": "^[^A-Z\\\\*/?\"<>|, #:-]{1,100}$"},
    "wildcard": {"type": "string"},
    "match_only_text": {"type": "string"},
    "date": {
        "type": "string",
        "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$",
    },
    "ip": {"type": "string", "pattern": IP},
    "long": {"type": "integer", "minimum": -2**63, "maximum": 2**63 - 1},
    "float": {"type": "number"},
    "boolean": {"type": "boolean"},
}
# What every record has, beside what ECS itself requires.
ECS_REQUIRED = """
    message event.kind event.dataset event.module event.action data_stream.type data_stream.dataset data_stream.namespace
"""

# OCSF's classes, and below them its objects, with the attributes that are used. `a:b` is an attribute whose object
# is reduced to `b`, which says in OCSF_OBJECTS of what object it is a part.
COMMON = """
    activity_id activity_name category_name category_uid class_name class_uid count device duration end_time message
    metadata observables severity severity_id start_time status status_code status_detail status_id time
    timezone_offset type_name type_uid unmapped
"""
OCSF_CLASSES = {
    "detection_finding": COMMON + """action action_id comment confidence confidence_id disposition disposition_id
        evidences finding_info is_alert resources risk_level risk_level_id""",
    "application_error": COMMON,
    "application_lifecycle": COMMON + "app",
}
PROCESS_OCSF = """auid cmd_line container created_time egid euid file:program group name namespace_pid path pid tid uid
    user working_directory"""
OCSF_OBJECTS = {
    "agent": "name type type_id uid uid_alt version vendor_name",
    "analytic": "category desc name type type_id uid version",
    "attack": "sub_technique tactic technique version",
    "container": "hash image labels name orchestrator pod_uuid runtime tags uid",
    "device": "agent_list boot_time boot_uid hostname ip name os type type_id uid",
    "evidences": "container file name process uid user",
    "file": """accessed_time created_time ext hashes is_deleted mime_type modified_time name owner parent_folder path
        size type type_id uid volume""",
    "finding_info": """analytic attacks created_time data_sources desc first_seen_time last_seen_time
        related_events related_events_count tags title types uid""",
    "fingerprint": "algorithm algorithm_id value",
    "group": "name uid",
    "image": "labels name tags uid",
    "key_value_object": "name value values",
    "metadata": """correlation_uid event_code labels log_name log_provider logged_time original_time processed_time
        product profiles sequence tags uid version""",
    "observable": "name type type_id value",
    "os": "kernel_release name type type_id version",
    "process": PROCESS_OCSF + " ancestry parent_process:parent",
    "parent": ("process", PROCESS_OCSF),
    "process_entity": "cmd_line created_time name path pid uid",
    "product": "name uid vendor_name version",
    "program": ("file", "hashes name parent_folder path type type_id uid"),
    "related_event": "count first_seen_time last_seen_time severity severity_id title type type_uid uid",
    "resource_details": "data hostname ip labels name namespace owner tags type uid uid_alt version",
    "sub_technique": "name src_url uid",
    "tactic": "name src_url uid",
    "technique": "name src_url uid",
    "user": "groups name type type_id uid",
}
# integer_t is what data lakes keep in 32 bits. A time in milliseconds has 13 digits: this finds seconds and nanoseconds.
OCSF_TYPES = {
    "boolean_t": {"type": "boolean"},
    "integer_t": {"type": "integer", "minimum": -2**31, "maximum": 2**31 - 1},
    "ip_t": {"type": "string", "pattern": IP},
    "json_t": {},
    "long_t": {"type": "integer", "minimum": -2**63, "maximum": 2**63 - 1},
    "string_t": {"type": "string"},
    "timestamp_t": {"type": "integer", "minimum": 10**12, "maximum": 10**13 - 1},
    "uuid_t": {"type": "string", "pattern": "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"},
}
